"""Weights & Biases: the run's values, figures and checkpoints on a server, or in a folder to send later.

This is the only file that imports wandb. One run directory is one W&B run, however often it is resumed: `wandb.json` in
the run directory keeps its id, which W&B's agent chooses if it has started the run. Offline, every start adds a folder
under `<run_dir>/wandb`, and `wandb sync <run_dir>/wandb/offline-run-*` appends them, in order, to one run on the
server. (If the server has received part of an online folder, sync appends all of it, so its first lines appear twice.)

A run that resumes from before its last logged step logs those steps again. W&B cannot remove values, so both stay in
its history at the same `trainer/global_step`; `metrics.jsonl` has each once.
"""

import html
import json
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import wandb
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only
from matplotlib.figure import Figure
from PIL import Image
from pydantic import PositiveFloat
from wandb.errors import AuthenticationError, CommError, UsageError

from leyden import git
from leyden.console import say
from leyden.errors import UserError
from leyden.files import write_atomically
from leyden.files.formats import WANDB
from leyden.loggers import films
from leyden.metric_names import metric_name

STEP = "trainer/global_step"
MAX_TAG = 64  # characters


class Wandb(WandbLogger):
    """A W&B run that lasts as long as its run directory.

    With `mode: auto` it is online if there is a key (`wandb login`, `WANDB_API_KEY`) and offline otherwise; it never
    prompts. It also goes offline if the server does not answer within `start_timeout` seconds. An upload that is not
    complete `finish_timeout` seconds after the end is abandoned; the rest is on disk. Failures of W&B never stop the
    training. The client writes only to `<run_dir>/wandb`.

    `sweep` is the run's position in a sweep: the sweep's name, and the run's trial, job, seed and fold, if it has
    them. The runs of a sweep form one group, and each is tagged with its position.

    Raises:
        UserError: at its first use, if `mode: online` finds no valid key or the server refuses the run.
    """

    def __init__(
        self,
        *,
        run_dir: Path,
        config: dict[str, Any] | None = None,
        sweep: dict[str, Any] | None = None,
        project: str = "leyden",
        entity: str | None = None,
        name: str | None = None,
        group: str | None = None,
        job_type: str | None = None,
        tags: list[str] | None = None,
        notes: str | None = None,
        mode: Literal["auto", "online", "offline", "disabled"] = "auto",
        log_checkpoints: bool = False,
        start_timeout: PositiveFloat = 10.0,
        finish_timeout: PositiveFloat = 300.0,
    ) -> None:
        run_dir = Path(run_dir).absolute()
        position = {key: value for key, value in (sweep or {}).items() if value is not None}
        position_tags = [f"{'sweep' if key == 'name' else key}:{value}"[:MAX_TAG] for key, value in position.items()]
        super().__init__(
            name=name or f"{run_dir.parent.name}/{run_dir.name}",
            save_dir=run_dir,
            project=project,
            entity=entity,
            group=group or position.get("name"),
            job_type=job_type or ("job" if position else None),
            tags=[*(tags or []), *position_tags],
            notes=notes,
            config={**(config or {}), "sweep": position} if position else config,
            allow_val_change=True,  # the settings of a resumed run may differ from those of its first start
        )
        self._wandb_init.pop("anonymous", None)  # Lightning passes it, but W&B has deprecated it
        self._identity_path = run_dir / "wandb.json"
        self._client_dir = run_dir / "wandb"
        self._run_dir = run_dir
        self._mode = mode
        self._log_checkpoints = log_checkpoints
        self._settings = wandb.Settings(
            silent=True,  # this class prints what matters, in one line
            init_timeout=start_timeout,
            finish_timeout=finish_timeout,
            finish_timeout_raises=True,
            disable_git=True,  # W&B's git may run programs that the repository names
            git_commit=(git.run_git("rev-parse", "HEAD") or b"").decode().strip() or None,
            git_remote_url=git.remote(),
        )
        self._variables: list[str] = []  # environment variables that this logger has set
        self._client_died = False

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The `wandb.Run`, started at its first use."""
        if self._experiment is None:
            self._experiment = self._start()
        return self._experiment

    def _start(self) -> Any:
        self._keep_files_in_run_dir()
        path = self._identity_path
        identity = json.loads(path.read_text()) if path.exists() else {"format": WANDB.number}
        WANDB.check(path, identity)
        if "WANDB_SWEEP_ID" in os.environ:  # W&B's agent started this process and chose its run
            identity = {key: os.environ.get(f"WANDB_{key.upper()}") for key in ("project", "entity")}
            identity["id"] = os.environ["WANDB_RUN_ID"]
        self._id = identity.get("id") or secrets.token_hex(4)
        self._wandb_init |= {key: identity[key] for key in ("project", "entity") if key in identity}
        mode = self._choose_mode()
        self._save_identity(mode=mode, url=identity.get("url"))
        notice = "W&B is offline"
        try:
            run = self._init(mode)
        except CommError as error:
            wandb.teardown(1)  # otherwise the id stays in use
            notice = f"W&B did not accept the run, which continues offline ({' '.join(str(error).split())})"
            mode = "offline"
            run = self._init(mode)
        except (AuthenticationError, UsageError) as error:
            raise UserError(f"logger.wandb was refused: {error}") from error
        if mode == "online":
            self._wandb_init |= {"project": run.project, "entity": run.entity}
        self._save_identity(mode=mode, url=run.url if mode == "online" else identity.get("url"))
        if mode == "online":
            say(f"W&B: {run.url}")
        elif mode == "offline":
            say(f"{notice}; send it later with: wandb sync {self._client_dir}/offline-run-*")
        run.define_metric(STEP)
        run.define_metric("*", step_metric=STEP, step_sync=True)
        return run

    def _init(self, mode: str) -> Any:
        return wandb.init(**{**self._wandb_init, "id": self._id, "mode": mode, "settings": self._settings})

    def _choose_mode(self) -> str:
        """Choose the mode by the user's settings and keys, without the network."""
        if self._mode in ("offline", "disabled"):
            return self._mode
        configured_mode = wandb.setup(wandb.Settings(silent=True)).settings.mode  # WANDB_MODE, `wandb offline`
        configured_mode = {"dryrun": "offline", "run": "online"}.get(configured_mode, configured_mode)
        if self._mode == "auto" and configured_mode != "online":
            return configured_mode
        try:
            logged_in = wandb.login(prompt=False, verify=False)
        except AuthenticationError as error:
            raise UserError(f"logger.wandb.mode={self._mode} cannot use the key it found: {error}") from error
        if self._mode == "online" and not logged_in:
            raise UserError("logger.wandb.mode=online needs a key: run `wandb login`, or set WANDB_API_KEY")
        return "online" if logged_in else "offline"

    def _save_identity(self, mode: str, url: str | None) -> None:
        destination = {key: self._wandb_init[key] for key in ("project", "entity")}
        identity = WANDB.stamp({"id": self._id, **destination, "mode": mode, "url": url})
        write_atomically(self._identity_path, json.dumps(identity, indent=2) + "\n")

    def _keep_files_in_run_dir(self) -> None:
        """Point the client's caches, by default in the user's home, under the run directory until `close`."""
        for variable, folder in (("WANDB_CACHE_DIR", "cache"), ("WANDB_DATA_DIR", "data")):
            if variable not in os.environ:
                os.environ[variable] = str(self._client_dir / folder)
                self._variables.append(variable)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log values at `step`, with leyden's names, by which sweeps and best values are found: `val/loss`."""
        run = self.experiment
        if self._client_died:
            return
        try:
            run.log({**{metric_name(name): value for name, value in metrics.items()}, STEP: step})
        except (wandb.Error, OSError) as error:
            self._client_died = True
            say(f"W&B's client died, so from here on this run logs only to metrics.jsonl: {error}")

    @rank_zero_only
    def log_figure(self, name: str, figure: Figure | np.ndarray, step: int) -> None:
        """Log `figure`, or uint8 pixels, as a picture."""
        picture = Image.fromarray(figure) if isinstance(figure, np.ndarray) else figure
        self.log_metrics({name: wandb.Image(picture)}, step)

    @rank_zero_only
    def log_image(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Log uint8 pixels (H, W) or (H, W, 3) as a picture."""
        self.log_figure(name, pixels, step)

    @rank_zero_only
    def log_animation(self, name: str, step: int) -> None:
        """Log the animation `samples/<name>.gif` as a video, if it has any frames."""
        path = films.gif_path(self._run_dir, name)
        films.render(path)  # include the last frames
        if path.exists():
            self.log_metrics({f"{name}_film": wandb.Video(path)}, step)

    @rank_zero_only
    def log_text(self, name: str, text: str, step: int) -> None:
        """Log `text` as preformatted HTML."""
        self.log_metrics({name: wandb.Html(f"<pre>{html.escape(text)}</pre>")}, step)

    @rank_zero_only
    def log_best(self, name: str, mode: Literal["min", "max"]) -> None:
        """Have W&B store the best value of `name` in the run's summary, as `name.min` or `name.max`."""
        self.experiment.define_metric(name, step_metric=STEP, step_sync=True, summary=f"{mode},last")

    @rank_zero_only
    def log_checkpoint(self, path: Path, aliases: list[str], step: int) -> None:
        """Upload a checkpoint, a file or a folder, as a version of `model-<id>` if `log_checkpoints` is set."""
        if not self._log_checkpoints:
            return
        run = self.experiment
        if self._client_died:
            return
        artifact = wandb.Artifact(f"model-{run.id}", type="model", metadata={"step": step})
        add = artifact.add_dir if path.is_dir() else artifact.add_file
        add(str(path), skip_cache=True)  # otherwise a copy stays in W&B's cache
        run.log_artifact(artifact, aliases=["latest", *aliases])

    @rank_zero_only
    def close(self, exit_code: int) -> None:
        """End the W&B run: finished for exit code 0, failed for any other. Always call it, after everything else."""
        try:
            if self._experiment is not None:
                self._experiment.finish(exit_code)
        except TimeoutError:
            command = f"wandb sync --include-online {Path(self._experiment.dir).parent}"
            say(f"W&B did not receive everything in time; send the rest with: {command}")
        except (wandb.Error, OSError) as error:
            say(f"W&B's client died before the end of the run: {error}")
        finally:
            with suppress(wandb.Error, OSError):
                wandb.teardown(exit_code)  # the next run in this process starts its own client and folder
            for variable in self._variables:
                os.environ.pop(variable, None)
            self._variables.clear()
