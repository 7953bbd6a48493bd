"""What a user can do wrong: each error is one line that says where, what was seen, and the mend."""


class VitSearchError(Exception):
    """A mistake that its reader can mend; the command line prints it and leaves with `exit_code`."""

    exit_code = 2


class SpecError(VitSearchError):
    """The search file asks for something that cannot be run."""


class TableError(VitSearchError):
    """A name stands in one of two tables of our code that must have the same names; see docs/extending.md."""


class DataError(VitSearchError):
    """The images are missing, damaged, or not what the search file says they are."""


class TooLargeError(DataError):
    """An image file, or what it would decode to, is larger than is taken."""


class CheckpointError(VitSearchError):
    """A checkpoint folder is missing, damaged, or of another configuration."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint's files are missing, cut, or not the ones that were written."""


class OutOfMemoryError(VitSearchError):
    """A training step does not fit into the memory of its device."""


class SearchError(VitSearchError):
    """A search folder cannot be made, found, read or resumed."""


class LinkError(VitSearchError):
    """A file that would be written is a link, which may lead anywhere, or no file."""


class StorageError(VitSearchError):
    """The folder of a search cannot be written, or is not seen, from where a trial runs."""


class ClusterError(VitSearchError):
    """A Ray cluster cannot be started, reached, or is not fit for what is asked of it."""


class LostClusterError(ClusterError):
    """The head of a cluster died under a search; what Ray still does in this process cannot be ended but with it."""

    exit_code = 6  # not 2: nobody has to mend anything before a resume


class TrackingError(VitSearchError):
    """The MLflow server or database cannot be reached or refuses what it is sent."""


class PromotionError(VitSearchError):
    """A candidate cannot be promoted, or a model cannot be loaded from the registry."""


class ServingError(VitSearchError):
    """A model cannot be served as it was asked for."""


class PromotionRefusedError(PromotionError):
    """A version that may not become the champion, or not now."""

    exit_code = 3


class NoTrialCompletedError(VitSearchError):
    """The search ended, and not one of its trials reached full length."""

    exit_code = 4
