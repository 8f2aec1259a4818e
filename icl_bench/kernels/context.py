"""The context of the first GPU, made in a thread from the import of this module on, while torch is imported.

That takes half a second, in which torch would hold Python's lock. Torch uses the same context, the primary one.
"""

import ctypes
import threading


def make_context() -> None:
    """Make the context through the driver; leave it to torch, and its errors too, where that fails."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return
    device, context = ctypes.c_int(), ctypes.c_void_p()
    if driver.cuInit(0) == 0 and driver.cuDeviceGet(ctypes.byref(device), 0) == 0:
        driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)


MAKING = threading.Thread(target=make_context, name="make_context")
"""The thread."""
MAKING.start()
