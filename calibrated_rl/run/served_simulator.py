"""The simulator that a run currently serves: its folder, and how another one replaces it."""

from pathlib import Path

from calibrated_rl.calibration.ensemble import alignment_of, members_of
from calibrated_rl.inference.pool import ReplicaPool
from calibrated_rl.learner.config import OptimizerConfig
from calibrated_rl.learner.group import LearnerGroup
from calibrated_rl.learner.slots import SIMULATOR
from calibrated_rl.rollout.users import UserModel


class ServedSimulator:
    """The current simulator, in the learner and on the replicas."""

    def __init__(self, run: Path, uncalibrated: Path, learner: LearnerGroup, pool: ReplicaPool) -> None:
        """
        Args:
            run: the run's folder.
            uncalibrated: folder of the simulator before calibration.
        """
        self._run, self._learner = run, learner
        self.uncalibrated = uncalibrated
        self.pool = pool
        self._folder: Path | None = None

    def load(self, folder: Path, version: int | None = None) -> None:
        """Load the simulator in ``folder`` and serve it, as ``version`` or the next one."""
        self.load_in_learner(folder)
        self.serve(folder, version)

    def load_in_learner(self, folder: Path) -> None:
        """Load the simulator in ``folder`` into the learner alone."""
        self._learner.load(SIMULATOR, folder, optimizer=OptimizerConfig(), seed=0)

    def serve(self, folder: Path, version: int | None = None) -> None:
        """Send the learner's simulator, which was saved in ``folder``, to the replicas."""
        version = self.pool.version + 1 if version is None else version
        self.pool.publish(self._learner.weight_update(SIMULATOR, version))
        self._folder = folder

    @property
    def user(self) -> UserModel:
        """Who speaks in dialogues."""
        return self.pool

    @property
    def version(self) -> int:
        """Of the served simulator."""
        return self.user.version

    @property
    def members(self) -> list[Path]:
        """Folders of the ensemble of which it is a member; empty: it is a single simulator."""
        assert self._folder is not None, "no simulator is served yet"
        return members_of(alignment_of(self._folder))

    def serve_member(self, number: int) -> None:
        """Of an ensemble, serve the member ``number``, counted on from the first after the last; of a single simulator
        nothing changes."""
        members = self.members
        if members and self._folder != (member := members[number % len(members)]):
            self.load(member)

    @property
    def member(self) -> int:
        """Which member of its ensemble is served."""
        assert self._folder is not None, "no simulator is served yet"
        return self.members.index(self._folder)

    @property
    def path_in_run(self) -> str:
        """Its folder relative to the run's, for a run that resumes on another machine; empty: the uncalibrated one."""
        assert self._folder is not None, "no simulator is served yet"
        return "" if self._folder == self.uncalibrated else self._folder.relative_to(self._run).as_posix()


class EndpointSimulator(ServedSimulator):
    """A simulator behind an endpoint: it is always the same, and nothing of it is here."""

    def __init__(self, user: UserModel) -> None:
        self.uncalibrated = Path()
        self._user = user

    def load(self, folder: Path, version: int | None = None) -> None:
        """Nothing to do: arms begin with the uncalibrated simulator, and there is no other one."""

    @property
    def user(self) -> UserModel:
        return self._user

    @property
    def members(self) -> list[Path]:
        return []

    @property
    def path_in_run(self) -> str:
        return ""
