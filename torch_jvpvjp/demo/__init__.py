"""The demo: a network with our op, its tangents, and a whole Jacobian, on handwritten digits."""

import importlib.util
from pathlib import Path

import torch

__all__ = ["run_demo"]


def run_demo(output: str, *, quick: bool = False) -> int:
    """Train on the digits that ship inside scikit-learn, check a JVP, accumulate a Jacobian by plan, draw both.

    Args:
        output: Folder for the pictures; made if absent.
        quick: Train a tenth as long.

    Returns:
        0; 1 if a result is not what it must be; 2 if the packages of the demo are missing.
    """
    missing = [name for name in ("matplotlib", "sklearn", "tqdm") if importlib.util.find_spec(name) is None]
    if missing:
        print(f'demo: {", ".join(missing)} missing; install what it needs with: pip install "torch_jvpvjp[demo]"')
        return 2
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the networks are small: a second thread would mostly wait
    try:
        return _run(folder, 40 if quick else 400)
    finally:
        torch.set_num_threads(threads)


def _run(folder: Path, steps: int) -> int:
    from .jacobian import accumulate
    from .tangents import compare_tangents
    from .training import load_digits, train_autoencoder, train_classifier

    digits = load_digits()
    classifier = train_classifier(digits, steps)
    right = compare_tangents(classifier, digits)
    autoencoder = train_autoencoder(digits, 3 * steps)
    right &= accumulate(autoencoder, digits, folder)
    if not right:
        print("demo: a result above is not what it must be")
    return 0 if right else 1
