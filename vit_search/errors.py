"""The errors of vit_search. The message of each is one line that says where, what was found, and how to correct it."""


class VitSearchError(Exception):
    """The base of all errors that a user can correct. The command line prints the message and exits with `exit_code`."""

    exit_code = 2


class SpecError(VitSearchError):
    """A search file, or another file of settings, is wrong or asks for something impossible."""


class TableError(VitSearchError):
    """Two tables of our code that must have the same names do not; see docs/extending.md."""


class DataError(VitSearchError):
    """The images are missing or damaged, or do not fit the search file."""


class TooLargeError(DataError):
    """An image file, or its pixels, are too large."""


class CheckpointError(VitSearchError):
    """A checkpoint is missing or damaged, or belongs to another configuration."""


class LostWeightsError(CheckpointError):
    """The pretrained weights that a checkpoint needs are gone."""


class OtherWeightsError(CheckpointError):
    """A pinned source means other weights now."""


class DamagedCheckpointError(CheckpointError):
    """The files of a checkpoint are missing, incomplete or changed."""


class OutOfMemoryError(VitSearchError):
    """A training step does not fit into the memory of the device."""


class SearchError(VitSearchError):
    """The folder of a search cannot be made, found, read or resumed."""


class LinkError(VitSearchError):
    """A file that has to be written is a link, or is not a regular file. Links are not followed."""


class StorageError(VitSearchError):
    """The node of a trial cannot see or write the folder of the search."""


class ClusterError(VitSearchError):
    """A Ray cluster cannot be started or reached, or cannot do what you ask."""


class LostClusterError(ClusterError):
    """The head of the cluster was lost during a search. What Ray still does in this process ends only with the process."""

    exit_code = 6  # not 2: nobody has to fix anything before a resume


class TrackingError(VitSearchError):
    """MLflow's server or database cannot be reached, or refuses a record."""


class PromotionError(VitSearchError):
    """A candidate cannot be promoted, or a registered model cannot be loaded."""


class ServingError(VitSearchError):
    """A model cannot be served with these options."""


class PromotionRefusedError(PromotionError):
    """A version may not become the champion, or not now."""

    exit_code = 3


class NoTrialCompletedError(VitSearchError):
    """The search has ended, and no trial was trained to its full length."""

    exit_code = 4
