"""LightningCLI for the YAML files of this folder: train two networks, then learn to merge them, or a path.

python main.py fit --config train.yaml --seed_everything 1 --trainer.callbacks.filename a
python main.py fit --config train.yaml --seed_everything 2 --trainer.callbacks.filename b
python main.py fit --config merge.yaml --merged merged.ckpt
python main.py fit --config curve.yaml
python main.py fit --config star.yaml
"""

from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from lightning_rebasin import MergeModule


class MergeCLI(LightningCLI):
    """Exports the merged weights after ``fit`` if asked to."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add ``--merged``."""
        parser.add_argument(
            "--merged",
            type=str | None,
            default=None,
            help="where to write the merged checkpoint",
        )

    def after_fit(self) -> None:
        """Prove the permutation and write the midpoint."""
        if (
            isinstance(self.model, MergeModule)
            and self.config.fit.merged
            and self.trainer.is_global_zero
        ):
            self.model.export(self.config.fit.merged, force=True)


if __name__ == "__main__":
    MergeCLI(save_config_kwargs={"overwrite": True})
