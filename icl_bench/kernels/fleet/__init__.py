"""Fleet operators: the parts of a training step, on activations and parameters with a member axis M.

One file for each operator, with its public function, its definition in float64 and its form in operators of torch; the
Triton form has the same file name in `triton/`. `layout` and `records` hold the records that both forms read.

Where a docstring says nothing else, the argument `impl` is "reference" (the definition in float64), "torch" (any device
and type), "triton" (one launch each way, CUDA, not float64), or "auto": Triton where it can run, else torch. Every
operator raises ArgumentError for a shape or type that does not fit, and KernelUnavailableError for an implementation
that is asked for by name and cannot run.
"""
