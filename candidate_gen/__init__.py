"""The first stage: interactions -> model -> candidates with first-stage scores.

The public surface, by the module that is its home. Nothing is imported here, so that `candidate_gen.errors` and
`candidate_gen.generator` cost a serving host without `implicit` nothing::

    candidate_gen.errors             Persona4RecError, ConfigurationError, CandidateModelError
    candidate_gen.generator          CandidateGenerator, Candidates, Source           the contract: needs numpy alone
    candidate_gen.interactions       Interactions                                     needs scipy
    candidate_gen.implicit_models    Hyperparameters, DEFAULTS, GRID, train, load     needs implicit: ALS and BPR
"""
