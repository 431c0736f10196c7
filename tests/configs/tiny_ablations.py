"""The smallest ablation there is: two variants of the tiny run, one of them in two groups."""

from typing import Any

from tests.configs import tiny


def get_config() -> dict[str, Any]:
    config = tiny.get_config()
    # All programs but one stay those of the tiny run, which other tests have compiled.
    config.train.update(steps=4, checkpoint_every=2)
    return {
        **config.to_dict(),
        "groups": {
            "rate": {"slow": {}, "fast": {"optimizer.learning_rate": 1e-2}},
            # Said in another way, but the same run.
            "time": {"token": {"model.segments.time.enter": "token"}},
        },
        "baseline": {"rate": "slow", "time": "token"},
        "seeds": 2,
        "metrics": dict(validation=16, samples=8, batch_size=8, encoder="pixels", grid=3),
    }
