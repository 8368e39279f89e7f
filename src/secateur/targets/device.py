"""Which CUDA device a target may use."""

from __future__ import annotations

import torch

from secateur.errors import TargetError


def cuda_device(target: str, least: tuple[int, int] = (0, 0)) -> torch.device:
    """The current CUDA device.

    Args:
        target: who asks. least: the compute capability that it needs.

    Raises:
        TargetError: there is none, or it is of an earlier capability.
    """
    if not torch.cuda.is_available():
        raise TargetError(
            f"{target} needs an NVIDIA GPU, its driver and a CUDA build of torch; torch {torch.__version__} sees no "
            "CUDA device here: run it on a machine with one, or take another target"
        )
    device = torch.device("cuda", torch.cuda.current_device())
    found = torch.cuda.get_device_capability(device)
    if found < least:
        raise TargetError(
            f"{target}: {torch.cuda.get_device_name(device)} has compute capability {found[0]}.{found[1]}, and "
            f"{least[0]}.{least[1]} is needed: take the target eager"
        )
    return device


if __name__ == "__main__":
    try:
        print(cuda_device("demo"))
    except TargetError as error:
        print(error)
