"""Round numbers for what a device reaches, so that shares and floors can be told in one's head."""

from fastmlp.profiling import Ceilings

CEILINGS = Ceilings(copy={1 << 40: 1e9}, matmul={"float32": 1e12, "bfloat16": 4e12}, launch=1e-6)
