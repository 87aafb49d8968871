import subprocess
import sys


def test_a_host_without_implicit_has_the_contract_and_the_errors() -> None:
    script = (
        "import sys; sys.modules.update(implicit=None, scipy=None)\n"
        "import candidate_gen, candidate_gen.errors, candidate_gen.generator"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_training_prints_and_warns_of_nothing() -> None:
    # A process of its own: implicit gives its warning about BLAS threads once, to the first who asks.
    script = (
        "from candidate_gen.implicit_models import DEFAULTS, train\n"
        "from candidate_gen.interactions import Interactions\n"
        "interactions = Interactions.from_pairs([('u', 'a'), ('u', 'b'), ('v', 'b'), ('v', 'c')])\n"
        "for model in DEFAULTS.values(): train(interactions, model).generate('w', 2, history=['a'])\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
