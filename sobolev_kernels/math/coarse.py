"""What GPU kernels compute less exactly where an activation's value is rounded to 16 bits before it is multiplied, by
2⁻⁹ (bf16) or 2⁻¹¹ (fp16), and never for float32 or TF32.

The numbers are the largest relative errors, of `tanh.approx`, of `ex2.approx` for all e^x that are float32 numbers, and
of `div.approx`, by NVIDIA's PTX ISA and CUDA C++ programming guide. What is not here is computed as in float32.
"""

COARSE = {"tanh": 2.0**-11, "exp": 2.0**-16, "quotient": 2.0**-22}
