"""A tensor of a dtype that is in no table, where nothing in the file says how large an element is.

PyTorch writes a dtype as a name beside a storage of bytes. Of a name that a later version brings there is the shape,
the name and the bytes, and no more: they are shown, and written again as they are. Nothing may cut, reorder or copy
single elements, so such a tensor covers its whole storage. Where the size of an element is known (safetensors says how
many bytes a tensor has, a live tensor how many an element), a plain LazyTensor of a `raw` dtype does.
"""

from __future__ import annotations

from statedict.errors import UnsupportedError
from statedict.tensor.arrays import Strides, contiguous_strides, torch_storage, torch_view
from statedict.tensor.lazy import LazyTensor, Storage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from statedict.dtypes import DType


class Labelled(LazyTensor):
    """A shape and a name over all bytes of a storage.

    Args:
        dtype: of the kind `raw`, with 0 bits.
        shape: its shape.
        storage: its bytes. A view (`first` or `steps` given) has one of its own.
        first: the element of the storage where it begins.
        steps: strides in elements; None means contiguous.
        requires_grad, parameter: what PyTorch recorded with it.
    """

    __slots__ = ("first", "steps")

    def __init__(
        self,
        dtype: DType,
        shape: tuple[int, ...],
        storage: Storage,
        first: int = 0,
        steps: Strides | None = None,
        requires_grad: bool = False,
        parameter: bool = False,
    ) -> None:
        super().__init__(dtype, shape, storage, 0, None, requires_grad, parameter)
        self.first, self.steps = first, steps

    @property
    def nbytes(self) -> int:
        """Bytes of its storage."""
        return self.storage.nbytes

    @property
    def span(self) -> int:
        """Bytes of its storage."""
        return self.storage.nbytes

    @property
    def region(self) -> tuple[object, ...]:
        """As `LazyTensor.region`."""
        return *super().region, self.first, self.steps

    @property
    def is_view(self) -> bool:
        """Whether it begins within its storage, or does not lie row-major in it."""
        return bool(self.first) or self.steps is not None

    def stride(self, dim: int | None = None) -> Any:
        """Strides in elements, as `torch.Tensor.stride`."""
        steps = contiguous_strides(self.shape) if self.steps is None else self.steps
        return steps if dim is None else steps[dim]

    def __getitem__(self, index: Any) -> LazyTensor:
        raise self._unsized("cannot be sliced")

    def raw(self) -> bytes | bytearray:
        """The bytes of its storage."""
        return self.storage.source.read(self.storage.offset, self.storage.nbytes)

    def torch(self, copy: bool = False) -> Any:
        """As a `torch.Tensor`, where the installed PyTorch has its dtype."""
        kind = self.dtype.torch
        data = None if copy else self.storage.view(private=True)
        held = torch_storage(self._owned() if data is None else data)
        if held.data_ptr() % max(kind.itemsize, 1):
            held = torch_storage(self._owned())
        return torch_view(held, self.dtype, self.shape, self.stride(), self.first)

    def contiguous(self) -> LazyTensor:
        """Itself: its bytes are those of its storage. Whether they are its elements in order, `element_bytes` says."""
        return self

    def element_bytes(self) -> int:
        """How many bytes of the storage there are for each element.

        Raises:
            UnsupportedError: no whole number, or it is a view.
        """
        numel = self.numel()
        if self.is_view:
            raise self._unsized("is a view of a storage and cannot be copied out of it")
        if numel and self.nbytes % numel:
            raise self._unsized("has no whole number of bytes an element")
        return self.nbytes // numel if numel else 0

    def _unsized(self, what: str) -> UnsupportedError:
        return UnsupportedError(
            f"{self!r}: {what}: this version does not know how large an element of {self.dtype} is; "
            "read its bytes with .raw(), save it in the format that it comes from, or update statedict"
        )
