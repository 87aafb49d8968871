"""Online: profiles, scores and explanations over gRPC. Knows no LLM and depends on no machine-learning library."""
