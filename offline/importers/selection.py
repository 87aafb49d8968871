"""Which part of a published dataset is wanted: seldom the whole, since a language model's bill follows the reviews."""

from dataclasses import dataclass

from offline.errors import ConfigurationError
from offline.records import Item


@dataclass(frozen=True, slots=True)
class Selection:
    """What to import; by default, all of it.

    Raises:
        ConfigurationError: nothing could fit.

    """

    since: int | None = None
    """Milliseconds since the epoch: reviews and interactions at this time or later. Undated ones do not fit."""
    until: int | None = None
    """Milliseconds since the epoch: reviews and interactions before this time. Undated ones do not fit."""
    categories: tuple[str, ...] = ()
    """Items of any of these, compared without regard to case, and what was said of them."""
    min_per_item: int = 0
    """Interactions that an item has at least, with users who stay. Above 0, items without any go as well."""
    min_per_user: int = 0
    """Interactions that a user has at least, with items that stay."""

    def __post_init__(self) -> None:
        if self.since is not None and self.until is not None and self.since >= self.until:
            raise ConfigurationError("--since is not before --until, so that no review could fit: exchange them")

    @property
    def has_core(self) -> bool:
        """Whether users or items leave for having too few interactions."""
        return self.min_per_item > 0 or self.min_per_user > 1

    def fits_time(self, timestamp: int | None) -> bool:
        """Return whether a review or interaction of this time is wanted."""
        if self.since is None and self.until is None:
            return True
        return (
            timestamp is not None
            and (self.since is None or self.since <= timestamp)
            and (self.until is None or timestamp < self.until)
        )

    def fits_category(self, item: Item) -> bool:
        """Return whether the item is of a wanted category."""
        wanted = {category.casefold() for category in self.categories}
        return not wanted or any(category.casefold() in wanted for category in item.categories)
