"""Side by side with nnU-Net: every stage of both, on the same machine, the same data and the same question.

``python -m benchmarks`` runs all stages and writes ``docs/benchmarks.json`` and the section of ``docs/benchmarks.md``.
``stages/`` holds one module per stage: what is run, on what, what may be compared and where the limit of the machine
lies. ``ours/`` are programs for this environment, ``theirs/`` the same tasks for the peer's own environment.
"""
