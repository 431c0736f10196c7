"""Trains a causal video autoencoder on videos, or resumes its training.

    python -m experiments.train_autoencoder --config=configs/video_autoencoder.py:totems
    python -m experiments.train_autoencoder --config=configs/video_autoencoder.py:clips \\
        --config.data.path=videos --config.validation.path=more_videos

Running the command again resumes from the newest checkpoint; Ctrl-C and SIGTERM save one first. At
the end the run's folder has `autoencoder.safetensors`, with the names of Wan's weights.
"""

from collections.abc import Sequence

from experiments import cli
from uvit_jax import interrupts


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; the exit status is 0, or 128 + the signal that stopped it."""
    parser = cli.Parser(
        __doc__,
        keys="uvit_jax.training.autoencoder_training.AutoencoderRun",
        example="--config.train.steps=100, --config.autoencoder.latent_channels=8",
    )
    parser.add_argument(
        "--workdir", metavar="DIR", help="the run directory; default workdirs/<name of the config>"
    )
    args = parser.parse(argv)
    from uvit_jax.training.autoencoder_training import parse_autoencoder_run, train_autoencoder

    run = parse_autoencoder_run(cli.read_config(args.config, args.overrides))
    workdir = args.workdir or f"workdirs/{cli.config_name(args.config)}"
    results = train_autoencoder(run, workdir)
    cli.write_json(args.json, {"workdir": workdir, **results})
    if results["stopped"]:
        print(f"stopped and saved at step {results['step']}; the same command resumes it")
        return interrupts.stop_status()
    print(f"{results['path']}: PSNR {results['psnr']:.2f} dB, SSIM {results['ssim']:.4f}")
    return 0


if __name__ == "__main__":
    cli.run(main)
