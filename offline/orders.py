"""Reviews that speak to a language model instead of to readers: such a review is not shown to one at all.

What a prompt says of untrusted text holds a large model at best: one of half a billion parameters obeyed most of the
orders planted for it, told not to or not. So whoever orders a model about is turned away before, by rules that can be
read here. An honest review that reads like an order loses its say, which is seldom; an order in other words than these
gets through, which is why the prompt's own defences stay (`offline.quoting`).
"""

import re
import unicodedata

LONGEST = 20_000
"""Characters that are looked through: five times what a prompt shows of a review."""

_MACHINE = (
    r"(?:(?:large )?language models?|llms?|chat ?gpt|ais?|a\.i\.|"
    r"(?:ai|helpful|virtual) (?:assistants?|models?|systems?)|"
    r"assistant|(?:chat ?|helpful )bots?|automated (?:readers?|systems?|reviewers?|tools?)|text generators?|"
    r"summari[sz]ers?|sprachmodell\w*|ki(?:-\w+)?|ia|mod[eè]les? de langage|modelos? de (?:lenguaje|linguagem)|"
    r"modell[oi] linguistic[oi]|assistente|asistente)"
)
_WRITES = (
    r"(?:name|call|title|label|tag|describe|write|create|add|include|insert|put|mention|say|state|print|return|output|end|"
    r"begin|append|repeat|claim|give|set|fill|generate|produce|respond|reply|answer|omit|report|classify|treat|rate|note|"
    r"make sure|attribute|portray)"
)
_WRITTEN = r"(?:personas?|rationales?|json|outputs?|(?:your|the) (?:answers?|repl(?:y|ies)|response|summary|overview))"
_CLAUSE = r"[^.!?\n]"

_ORDERS = (
    # Away with what was told before.
    rf"\b(?:ignore|disregard|forget|override|bypass|discard|drop)\b{_CLAUSE}{{0,40}}\b(?:instructions?|rules?|prompts?|"
    r"guidelines|above|previous(?:ly)?|prior|earlier|told|everything before|constraints|context|persona task)\b",
    r"\b(?:new|next|real|actual|updated|current|your|hidden|secret|final|special) "
    r"(?:task|instructions?|rule|directive|orders?|prompt|objective|priority)\b\s*(?:is|are|for|[:.\-])",
    r"\b(?:hidden|secret|initial|original|system) (?:configuration|prompt|instructions)\b",
    rf"\b(?:treat|consider|regard|interpret)\b{_CLAUSE}{{0,30}}\b(?:preceding|previous|above|following|last|next) "
    r"(?:sentence|paragraph|review|text|line)s?\b",
    # Somebody who claims to be more than a reviewer.
    r"(?:^|[\n#>*\[(|])\W{0,5}(?:system|assistant|developer|operator|user|human|admin(?:istrator)?|instructions?|task)\b"
    r"[^\w\n]{0,3}:",
    r"\b(?:system|developers?|operator|admin(?:istrator)?|moderator)s?\W{1,3}(?:message|note|notice|override|prompt|"
    r"update|instruction|command)s?\b",
    r"\b(?:message|note|notice|reminder|order|command|instructions?)s? (?:from|to|for) "
    r"(?:the |this |any |all |an |your )?"
    rf"(?:\w+ )?(?:{_MACHINE}|developers?|system|operator|administrator|processing)\b",
    r"\byou(?:'re| are) (?:now |hereby |legally )?(?:cleared|authori[sz]ed|permitted|obliged|required|instructed|"
    rf"ordered) to (?:{_WRITES}|be)\b",
    # A machine is spoken to, or of as of who is to write.
    rf"(?:^|[.!?,(;:\n]\s{{0,3}})(?:\w{{1,20}},? )?{_MACHINE}\s{{0,3}}[,:]",
    rf"\b{_MACHINE}\b{_CLAUSE}{{0,50}}\b(?:should|must|shall|please|{_WRITES})\b",
    rf"\b(?:if|when|since|as|si|wenn|se)\b{_CLAUSE}{{0,12}}\b(?:an? |une? |eine? |uma? )?{_MACHINE}\b{_CLAUSE}{{0,25}}"
    r"\b(?:reading|reads|read|processing|you|tu)\b",
    rf"\b(?:if|when) you(?: are|'re) (?:a|an|the) (?:\w+ )?{_MACHINE}\b|\bsi tu es une ia\b|\bwenn du eine ki\b",
    rf"\b(?:systems?|software|tools?|whoever|anyone|pipelines?) {_CLAUSE}{{0,60}}\b(?:must|should|shall) (?:\w+ )?"
    rf"{_WRITES}\b",
    r"\b(?:when|before|while) you (?:create|write|summari[sz]e|generate|produce|compose|draft|output)\b",
    # What a model is to be, or to do from now on.
    r"\byou are (?:now|in|no longer|a|an|the|hereby) (?:\w+ )?(?:\w+ )?(?:mode|\w*bot|persona\w*|assistant|model|ai|"
    r"system|unrestricted|jailbroken)\b",
    r"\b(?:test|debug|developer|maintenance|god|admin|jailbreak|dan) mode\b",
    rf"\b(?:from now on|henceforth|from here on)\b{_CLAUSE}{{0,60}}\b(?:you|{_WRITES})\b|\brest of this conversation\b",
    rf"\b(?:pretend|act|role-?play|simulate)\b{_CLAUSE}{{0,30}}\b(?:you are|you're|to be|as)\b{_CLAUSE}{{0,40}}"
    rf"\b(?:{_MACHINE}|bot|persona\w*)\b",
    # What it is to write.
    rf"\b{_WRITES}\b{_CLAUSE}{{0,80}}\b{_WRITTEN}\b",
    rf"\boutput\b{_CLAUSE}{{0,30}}\b(?:words?|only|nothing|exactly)\b",
    r"\b(?:every|each|all|any|the (?:first|second|third|last|only)|your|these|both) (?:\w+ ){0,2}(?:personas?|"
    r"rationales?|descriptions?|summar(?:y|ies)|json|fields?|slots?|outputs?)\b",
    rf"\b(?:persona|rationale|summary|description|output|answer|json|field|slot|name)s?\b{_CLAUSE}{{0,30}}"
    r"\b(?:must|should|shall|has to|have to|needs? to|is to|are to)\b",
    rf"\b(?:reveal|print|show|repeat|output|leak|quote|list)\b{_CLAUSE}{{0,40}}\b(?:prompt|instructions|system message|"
    rf"rules|api key|configuration|(?:message|text|words?)\b{_CLAUSE}{{0,30}}\b(?:before|above|ahead|given|placed))\b",
    r"\b(?:customer|reader|viewer|guest|audience|user|fan|buyer|person) (?:types?|profiles?)\b",
    rf"\b(?:type|kind)s? of (?:reader|viewer|guest|person|people|user|buyer|customer)s?\b{_CLAUSE}{{0,40}}\b(?:must|"
    r"should|named?|called?)\b",
    rf"\b(?:named?|call(?:ed)?|label)\b{_CLAUSE}{{0,20}}\bthe type\b",
    # What comes in disguise.
    r"\b(?:base ?64|rot-?13|hex string|reversed? text)\b",
    rf"\b(?:decode|decipher)\b{_CLAUSE}{{0,20}}\b(?:this|following|below)\b",
    r"\b(?:end|start|begin(?:ning)?) of (?:the )?(?:data|reviews?|input|context|document|untrusted|user)\b",
    r"\b(?:all|the) reviews? (?:are|is|ends?|stops?|finished) (?:above|here)\b",
    r"(?<!=)={4,}[^\n]{0,40}(?:reviews?|data|input)",
    r"(?<![\w-])(?:\w[-. ]){4,}\w(?![\w-])",
    r"(?-i:(?=[a-z0-9+/]{0,27}[A-Z])(?=[A-Z0-9+/]{0,27}[a-z])[A-Za-z0-9+/]{28,}={0,2})",
    r"<\|\w+\|>|\[/?(?:INST|SYS\w*|SYSTEM)\]|<</?SYS>>|```|\"\s*[:\]}]\s*[\[{\"\d]|\{\{|\}\}|!\[\w*\]\(|\bYOUR_[A-Z]+",
    r"<!--|<script|</?(?:reviews?|item|data|input|system|instructions?|document|context|user|assistant|prompt)\b",
    # To ignore what stands above, to be something from now on, to write: in the languages of most other reviews.
    rf"\b(?:ignorier|vergiss|vergesst|missachte)\w*\b{_CLAUSE}{{0,40}}\b(?:anweisung|regel|alles|vorherig|oben|"
    r"bisherig)",
    rf"\b(?:ignor|oubli)\w+\b{_CLAUSE}{{0,40}}\b(?:consigne|instruction|r[èe]gle|pr[ée]c[ée]dent|tout)",
    rf"\b(?:ignor|olvid|esquec|desconsider|dimentica|no sigas)\w*\b{_CLAUSE}{{0,40}}\b(?:instrucci|instru[çc]|"
    r"istruzion|reglas?|regras?|regole|anterior|precedent|todo|tutto|tudo|tarefa|tarea)",
    r"\b(?:ab jetzt|ab sofort|von nun an|a partir de (?:ahora|agora)|d[ée]sormais|da (?:ora|questo momento) in|"
    r"da questo momento sei|dor[ée]navant)\b",
    rf"\b(?:jede[rsnm]?|allen?|chaque|toutes? les|cada|todas? las?|todos? os?|ogni|tutte? le) {_CLAUSE}{{0,12}}"
    r"personas?\b",
    r"忽略|无视|無視|指令|指示|系统提示|提示词|语言模型|人工智能|AI助手|人物画像|用户画像|プロンプト|ペルソナ|命令|言語モデル",
    r"\b(?:игнорир|забудь|не обращай|языков\w+ модел|отныне|нейросет|инструкци)",
    r"(?:^|\n)\W{0,5}(?:system|système|sistema|система|系统|システム)\w*\s*:",
)

_ANY = re.compile("|".join(_ORDERS), re.IGNORECASE)
_UNSEEN = re.compile("[\U000e0000-\U000e007f]")
"""Tag characters, which spell what no reader sees (Unicode 23.9)."""

_FLAG = re.compile("\U0001f3f4[\U000e0020-\U000e007f]{2,8}")
"""Flags of a few regions have some, after an emoji."""


def holds_orders(text: str) -> bool:
    """Return whether a text speaks to a language model: orders, false authority, disguise."""
    seen = text[:LONGEST]
    # Letters of other widths and shapes are brought to their plain form, and so are colons.
    return bool(_ANY.search(unicodedata.normalize("NFKC", seen)) or _UNSEEN.search(_FLAG.sub("", seen)))
