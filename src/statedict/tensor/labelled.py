"""Tensors of a dtype that is in no table, if the file does not say how large an element is.

PyTorch writes a dtype as a name beside a storage of bytes. Of a name from a later version we know the shape, the name
and the bytes: we show them and write them again unchanged. Nothing may cut, reorder or copy single elements, so the
tensor covers its whole storage. Where the size of an element is known (safetensors, live tensors), a plain LazyTensor
of a `raw` dtype does.
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
        shape, storage, requires_grad, parameter: as of `LazyTensor`; a view has a Storage of its own.
        first: the element of the storage where it begins.
        steps: strides in elements; None means contiguous.
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

    span = nbytes

    @property
    def region(self) -> tuple[object, ...]:
        """As `LazyTensor.region`."""
        return *super().region, self.first, self.steps

    @property
    def is_view(self) -> bool:
        """Whether it begins within its storage, or is not row-major."""
        return bool(self.first) or self.steps is not None

    def stride(self, dim: int | None = None) -> Any:
        """Strides in elements, as `torch.Tensor.stride`."""
        steps = contiguous_strides(self.shape) if self.steps is None else self.steps
        return steps if dim is None else steps[dim]

    def __getitem__(self, index: Any) -> LazyTensor:
        raise self._size_error("cannot be sliced")

    def raw(self) -> bytes | bytearray:
        """The bytes of its storage."""
        return self.storage.source.read(self.storage.offset, self.storage.nbytes)

    def torch(self, copy: bool = False) -> Any:
        """As a `torch.Tensor`, if the installed PyTorch has its dtype."""
        kind = self.dtype.torch
        data = None if copy else self.storage.view(private=True)
        storage = torch_storage(self._read_copy() if data is None else data)
        if storage.data_ptr() % max(kind.itemsize, 1):
            storage = torch_storage(self._read_copy())
        return torch_view(storage, self.dtype, self.shape, self.stride(), self.first)

    def contiguous(self) -> LazyTensor:
        """Itself, although the bytes of its storage may not be its elements in order; see `element_bytes`."""
        return self

    def element_bytes(self) -> int:
        """Bytes of the storage for each element.

        Raises:
            UnsupportedError: this is not a whole number, or the tensor is a view.
        """
        numel = self.numel()
        if self.is_view:
            raise self._size_error("is a view of a storage and cannot be copied out of it")
        if numel and self.nbytes % numel:
            raise self._size_error("does not have a whole number of bytes per element")
        return self.nbytes // numel if numel else 0

    def _size_error(self, what: str) -> UnsupportedError:
        return UnsupportedError(
            f"{self!r}: {what}: this version does not know how large an element of {self.dtype} is; "
            "read its bytes with .raw(), save it in its original format, or update statedict"
        )
