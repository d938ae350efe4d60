"""Results of experiments that nobody ran: what a page of :mod:`train.compare` is made of."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

BUDGET = 4.0e12
CLEAN = "held out"


def run(
    seed: int,
    end: float,
    noise: Mapping[str, float] | None = None,
    *,
    finished: bool = True,
    validations: int = 8,
) -> dict[str, Any]:
    """A run that ends at so many bits per byte; other texts have so many more at the end."""
    draw = random.Random(f"{seed} {end}")
    shares = [(i + 1) / validations for i in range(validations)]
    points = [
        {
            "step": 100 * (i + 1),
            "bytes": int(6e6 * share),
            "flops": BUDGET * share,
            "bits_per_byte": {CLEAN: end + 0.5 * (1 / share - 1) ** 0.7 + draw.gauss(0, 0.004)},
        }
        for i, share in enumerate(shares)
    ]
    points[-1]["bits_per_byte"][CLEAN] = end
    if finished:
        rises = {text: end + rise for text, rise in (noise or {}).items()}
        points[-1]["bits_per_byte"] |= rises
    else:
        points = points[: validations // 2]
    last = points[-1]
    return {
        **{"seed": seed, "finished": finished, "seconds": 301.2 * len(points) / validations},
        **{"bytes": last["bytes"], "flops": last["flops"], "points": points},
    }


def arm(name: str, runs: Sequence[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "label": f"{name} patches",
        "config": "blt_debug",
        "flags": ["--shape.dim-global", "136"],
        "model": "2 layers, 136 wide, 4 heads, 344 in feed-forward layers",
        "fitted": {"dim_global": 136},
        "entropy_model": None,
        "parameters": 2_100_000,
        "table_parameters": 900_000,
        "patch_size": 4.51,
        "flops_per_byte": {
            **{"latent": 3.1e5, "encoder": 1.0e5, "decoder": 2.0e5, "cross_attention": 5e4}
        },
        "inference_flops_per_byte": 2.2e5,
        "entropy_model_flops_per_byte": 0.0,
        "runs": list(runs),
        **changes,
    }


def results(arms: Sequence[dict[str, Any]], *noises: str, **changes: Any) -> dict[str, Any]:
    sizes = {text: (16_801 + i, f"be19b9b0803{i}") for i, text in enumerate((CLEAN, *noises))}
    return {
        "name": "patches",
        "title": "Entropy patches against others at equal FLOPs",
        "question": "Are patches better that end where the next byte is hard to foresee?",
        "notes": ["The widths of the latent transformers were fitted to equal FLOPs per byte."],
        "command": "python jobs/compare.py patches --output compared/ --seeds 0 1 2",
        "version": "blt-titan 0.1.0",
        "hardware": "2 cores of a CPU",
        "seeds": [0, 1, 2],
        "budget_flops": BUDGET,
        "held_out": {
            text: {"bytes": size, "hash": digest, "documents": 12}
            for text, (size, digest) in sizes.items()
        },
        "arms": list(arms),
        **changes,
    }


NOISE = {"random_case": 0.9, "drop": 0.5, "upper_case": 1.3, "repeat": 0.6, "other_scripts": 2.1}


def whole() -> dict[str, Any]:
    """Five arms, three seeds, five texts beside the clean one."""
    token = {
        **{"label": "BPE, 4,096 tokens", "config": "bpe_debug", "patch_size": 3.4},
        "flops_per_byte": {"token_transformer": 6.62e5},
    }
    byte = {
        "label": "a transformer of bytes without any patches",
        **{
            "config": "bytes_debug",
            "patch_size": None,
            "flops_per_byte": {"entropy_model": 6.58e5},
        },
    }
    needs = {"entropy_model": "entropy-1m", "entropy_model_flops_per_byte": 2.4e6}
    plan: list[tuple[str, list[float], float, dict[str, Any]]] = [
        (
            "entropy",
            [2.301, 2.312, 2.308],
            1.0,
            needs,
        ),
        ("static", [2.371, 2.366, 2.381], 1.1, {"patch_size": 4.5}),
        ("space", [2.306, 2.309, 2.311], 1.05, {"patch_size": 5.92}),
        (
            "BPE",
            [2.284, 2.290, 2.281],
            1.6,
            token,
        ),
        (
            "bytes",
            [2.52, 2.5, 2.51],
            1.0,
            byte,
        ),
    ]
    arms = []
    for name, ends, factor, changes in plan:
        rises = {text: factor * rise for text, rise in NOISE.items()}
        arms.append(arm(name, [run(s, end, rises) for s, end in enumerate(ends)], **changes))
    return results(arms, *NOISE)
