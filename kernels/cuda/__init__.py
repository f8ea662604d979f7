"""Hand-written CUDA kernels, one ``.cu`` file an operation, and the devices that launch them.

`kernels.X` binds the kernels of ``kernels/cuda/X.cu`` to the operations of its file, in functions whose names end
in ``_cuda``.
"""
