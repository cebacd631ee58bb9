"""A pretend CUDA device for a PyTorch without one: the host's memory, the CPU's kernels, CUDA's rules.

    with PretendCuda(devices=2, gib=8) as cuda:
        model.to("cuda:1")                  # tensors say cuda:1; `device.type == "cuda"` branches run
        torch.cuda.max_memory_allocated(1)  # and the rest of `torch.cuda`: bytes are counted per device
        cuda.waits                          # what made the CPU wait for a device, and the line that did

Tensors stay the CPU's. Their storage carries the device, so views, `.data` and what autograd keeps are one
block of memory until the last of them is gone. Inside the block, always with the line that is to blame,

- an operator on tensors of two devices raises RuntimeError, `.numpy()` TypeError, a generator of another
  device and, with ``float64=False``, a tensor of that type RuntimeError (Apple's have none);
- more bytes than ``gib``, or than `torch.cuda.set_per_process_memory_fraction` leaves, raise
  `torch.OutOfMemoryError`;
- a wait raises RuntimeError after `torch.cuda.set_sync_debug_mode("error")`;
- with ``compute=False`` memory is reserved, never touched, and numbers mean nothing: the peak of a full-size
  forward pass in seconds.

It has no workspaces of cuDNN, no gaps between blocks of memory and one stream, and rounds as the CPU does.
Threads that start inside the block know the device, other processes do not. Compiled code (inductor, Triton)
does not run.
"""

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch._dynamo  # optimisers import it, which must find PyTorch as it is
from torch import Tensor
from torch._C import DisableTorchFunction, TensorBase
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

# Tests run that take minutes, too.
ALL = os.environ.get("SV4D2_PRETEND") == "all" or torch.cuda.is_available()

_CPU, _META = torch.device("cpu"), torch.device("meta")
_ROOT = f"{Path(__file__).parents[2]}/"
_FOREIGN = (str(Path(torch.__file__).parent), __file__, "<")
_GRAIN = 512  # bytes; CUDA's allocator rounds up to whole ones

_COPIES = {"copy_", "_to_copy", "_foreach_copy_"}
# They look at no memory.
_ASKING = {"_has_compatible_shallow_copy_type"}
# A device's tensor takes indices of the CPU.
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
# Their results, or the sizes of these, are needed on the CPU.
_WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "bincount", "repeat_interleave"}
_WAITING |= {"_linalg_check_errors", "unique_consecutive", "_unique2", "unique_dim"}
_MAY_WAIT = _COPIES | _INDEXING | _WAITING
_BY_CONTENT = _WAITING - {"_local_scalar_dense"}  # the size of their results depends on it
# The memory of their argument may change.
_GROWING = {"resize_", "set_"}


class Wait(NamedTuple):
    """Something that made the CPU wait for a device."""

    operator: str
    line: str  # ``file:line function``


class _Counter:
    """The bytes of one device."""

    def __init__(self, index: int, total: int) -> None:
        self.device, self.now, self.peak, self.limit = torch.device("cuda", index), 0, 0, total

    def add(self, size: int) -> None:
        if size > 0 and self.now + size > self.limit:
            wanted, used, limit = (n / 2**20 for n in (size, self.now, self.limit))
            raise torch.OutOfMemoryError(
                f"CUDA out of memory. Tried to allocate {wanted:.2f} MiB; {used:.2f} of {limit:.2f} MiB of "
                f"{self.device} are in use, at {blamed()}."
            )
        self.now += size
        self.peak = max(self.peak, self.now)


class _Block:
    """The memory of one storage on a device; it is free once the storage is gone."""

    def __init__(self, counter: _Counter, size: int) -> None:
        self.counter, self.size = counter, 0
        self.resize(size)

    def resize(self, size: int) -> None:
        size = -(-size // _GRAIN) * _GRAIN
        self.counter.add(size - self.size)
        self.size = size

    def __del__(self) -> None:
        self.counter.now -= self.size


def blamed() -> str:
    """Return the line at work, ``file:line function``: the innermost of this repository, else of any."""
    frame, other = sys._getframe(1), "an unknown line"
    while frame is not None:
        file, line = frame.f_code.co_filename, f"{frame.f_lineno} {frame.f_code.co_name}"
        if not file.startswith(_FOREIGN):
            if file.startswith(_ROOT) and "site-packages" not in file:
                return f"{file.removeprefix(_ROOT)}:{line}"
            other = f"{file}:{line}" if other == "an unknown line" else other
        frame = frame.f_back
    return other


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    """Return the tensors among values and in lists of them."""
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (tuple, list)):
            found += _tensors(value)
    return found


def _storage(x: Tensor) -> Any:
    """Return what carries a tensor's device: its storage, or itself where it has none (sparse)."""
    with DisableTorchFunction():
        return x.untyped_storage() if x.layout == torch.strided else x


def _put_on(x: Tensor) -> torch.device | None:
    """Return the pretend device that a tensor is on, if any."""
    block = getattr(_storage(x), "pretend_block", None)
    return None if block is None else block.counter.device


def _device_of(x: Tensor) -> torch.device:
    with DisableTorchFunction():
        return _put_on(x) or TensorBase.device.__get__(x)


def _resolved(device: Any) -> torch.device:
    """Return a device with its number, of CUDA's the current one where it has none."""
    device = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    if device.type != "cuda":
        return device
    index, count = device.index, torch.cuda.device_count()
    if index is None:
        index = torch.cuda.current_device()
    if not 0 <= index < count:
        raise RuntimeError(f"CUDA error: invalid device ordinal: cuda:{index} of {count}, at {blamed()}.")
    return torch.device("cuda", index)


class _Generator(torch._C.Generator):
    """A generator that says of which device it is."""

    device: Any = _CPU

    def __new__(cls, device: Any = "cpu") -> "_Generator":
        made = super().__new__(cls, "cpu")
        made.device = _resolved(device)
        return made

    def __init__(self, device: Any = "cpu") -> None: ...


class _Stream:
    """A stream or an event: all work is done at once."""

    cuda_stream = stream_id = 0

    def __init__(self, device: Any = "cuda", **_options: Any) -> None:
        self.device = _resolved(device)

    def record_event(self, event: Any = None) -> Any:
        return event or _Stream()

    def query(self) -> bool:
        return True

    def elapsed_time(self, _end: Any) -> float:
        return 0.0

    def _nothing(self, *_args: Any, **_options: Any) -> None: ...

    def __enter__(self) -> "_Stream":
        return self

    synchronize = wait = record = wait_stream = wait_event = __exit__ = _nothing


class _State(threading.local):
    """What a thread is at."""

    index = 0  # of the current device
    within: torch.device | None = None  # device of the function at work
    passing = False  # operators pass unseen


class _Functions(TorchFunctionMode):
    """Tells the operators inside a function of PyTorch on which device it works, and checks generators."""

    def __init__(self, cuda: "PretendCuda") -> None:
        super().__init__()
        self.cuda = cuda

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, state = kwargs or {}, self.cuda.state
        if func is torch.device and args and isinstance(args[0], int):
            return func("cuda", args[0])
        device, before = kwargs.get("device"), state.within
        if device is None:
            given = _tensors((*args, *kwargs.values()))
            device = next((device for device in map(_put_on, given) if device is not None), None)
            state.within = before or device
        generator = kwargs.get("generator")
        if generator is not None and generator.device != (wanted := _resolved(device or "cpu")):
            raise RuntimeError(
                f"Expected a generator of {wanted}; got one of {generator.device}, at {blamed()}."
            )
        try:
            return func(*args, **kwargs)
        finally:
            state.within = before


class _Operators(TorchDispatchMode):
    """Checks the devices of every operator, computes on the CPU and says where the result is."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # it would only be imported, which takes seconds

    def __init__(self, cuda: "PretendCuda") -> None:
        super().__init__()
        self.cuda = cuda

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cuda, kwargs = self.cuda, kwargs or {}
        if cuda.state.passing:
            return func(*args, **kwargs)
        with DisableTorchFunction():
            given = _tensors((*args, *kwargs.values()))
            places, asked, within = [_put_on(x) for x in given], kwargs.get("device"), cuda.state.within
            device = next((place for place in places if place is not None), None)
            name = func._schema.name.removeprefix("aten::")
            if device is not None:
                check(name, args, given, places)
                if name in _MAY_WAIT and waits(name, args, places):
                    cuda.note_wait(name)
            if asked is not None:
                device = _resolved(asked) if asked.type == "cuda" else None
                kwargs = {**kwargs, "device": _CPU if device else asked}
            # Inside a function, an operator asks for the device of a tensor that it believes to be the CPU's.
            if within is not None and (asked == _CPU or (asked is None and not given)):
                device = within
            if device is None:
                return func(*args, **kwargs)
            if cuda.compute or func.is_view or name in _BY_CONTENT:
                result = func(*args, **kwargs)
            else:
                result = _reserved(name, func, args, kwargs)
            known = [_storage(x) for x in given]
            for x in _tensors((result,)):
                if not any(_storage(x) is storage for storage in known) or name in _GROWING:
                    cuda.put(x, device)
            return result


def check(name: str, args: Any, given: list[Tensor], places: list[torch.device | None]) -> None:
    """Raise RuntimeError where an operator's arguments are on two devices."""
    if name in _COPIES or name in _ASKING:
        return
    pairs = list(zip(given, places, strict=True))
    if name in _INDEXING and places[0] is not None:
        pairs = [(x, place) for x, place in pairs if place is not None or not any(x is i for i in args[1])]
    # A number on the CPU goes with all, but is not joined to a device's tensors.
    alone = {place for x, place in pairs if place is not None or x.dim() > 0 or name in ("cat", "stack")}
    if len(alone) > 1:
        got = ", ".join(f"{place or 'cpu'} {list(x.shape)}" for x, place in zip(given, places, strict=True))
        raise RuntimeError(f"Expected all tensors to be on the same device; {name} got {got}, at {blamed()}.")


def waits(name: str, args: Any, places: list[torch.device | None]) -> bool:
    """Return whether an operator makes the CPU wait for the device of its arguments."""
    if name in _COPIES:
        return None in places and not any(value is True for value in args)
    if name in _INDEXING:
        indices = [x for x in args[1] if x is not None]
        masked = any(x.dtype in (torch.bool, torch.uint8) for x in indices)
        # One number where a mask is true is put there in place.
        filled = len(args) > 2 and len(indices) == 1 and args[2].numel() == 1
        return (masked and not filled) or any(_put_on(x) is None for x in indices)
    return name != "repeat_interleave" or len(args) == 1


# What an operator returns for arguments of these sizes: numbers of tensors given, or sizes of new ones.
_RETURNS: dict[Any, Any] = {}


def _reserved(name: str, func: Any, args: Any, kwargs: Any) -> Any:
    """Return an operator's result as memory that nobody touches."""
    if name == "_local_scalar_dense":
        return torch.ones((), dtype=args[0].dtype).item()
    given = _tensors((*args, *kwargs.values()))
    key = (func, _sizes(args), _sizes(tuple(kwargs.items())))
    if key not in _RETURNS:
        metas = []

        def shape_only(x: Tensor) -> Tensor:
            metas.append(torch.empty_strided(x.size(), x.stride(), dtype=x.dtype, device=_META))
            return metas[-1]

        def known(x: Tensor) -> Any:
            number = next((i for i, meta in enumerate(metas) if meta is x), None)
            return _Sizes(x.size(), x.stride(), x.dtype) if number is None else _Given(number)

        options = {**kwargs, "device": _META} if "device" in kwargs else kwargs
        args, options = tree_map_only(Tensor, shape_only, (args, options))
        _RETURNS[key] = tree_map_only(Tensor, known, func(*args, **options))
    returned = _RETURNS[key]
    if isinstance(returned, (_Sizes, _Given)):
        return returned.tensor(given)
    if isinstance(returned, (tuple, list)):
        return type(returned)(x.tensor(given) if isinstance(x, (_Sizes, _Given)) else x for x in returned)
    return returned


class _Given(NamedTuple):
    """One of the tensors that an operator was given."""

    number: int

    def tensor(self, given: list[Tensor]) -> Tensor:
        return given[self.number]


class _Sizes(NamedTuple):
    """What a tensor is like."""

    size: Any
    stride: Any
    dtype: torch.dtype

    def tensor(self, _given: list[Tensor]) -> Tensor:
        return torch.empty_strided(self.size, self.stride, dtype=self.dtype)


def _sizes(value: Any) -> Any:
    """Return a value with its lists as tuples and its tensors as `_Sizes`, which can be a key."""
    if isinstance(value, Tensor):
        return _Sizes(value.size(), value.stride(), value.dtype)
    return tuple(map(_sizes, value)) if isinstance(value, (tuple, list)) else value


class _Move(torch.autograd.Function):
    """A copy to another device whose gradient comes back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, device: torch.device, cuda: "PretendCuda", options: dict) -> Tensor:
        ctx.cuda, ctx.device = cuda, _device_of(x)
        return cuda.copied(x, device, options)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return ctx.cuda.moved(grads[0], ctx.device), None, None, None


class PretendCuda:
    """A block inside which there are CUDA devices; see the module."""

    def __init__(
        self,
        devices: int = 1,
        gib: float = 80.0,  # of each device, a hard limit
        float64: bool = True,  # whether devices have that type
        compute: bool = True,
    ) -> None:
        self.total, self.float64, self.compute = int(gib * 2**30), float64, compute
        self.counters = [_Counter(i, self.total) for i in range(devices)]
        self.state, self.waits, self.mode = _State(), [], 0
        self._stack = ExitStack()

    def __enter__(self) -> "PretendCuda":
        if torch.cuda.is_available():
            raise RuntimeError("Expected a PyTorch without CUDA devices; got one that has some.")
        enter = self._stack.enter_context
        for owner, changed in self._patches():
            for name, value in changed.items():
                enter(patch.object(owner, name, value))
        enter(_Functions(self))
        enter(_Operators(self))
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stack.close()

    def put(self, x: Tensor, device: torch.device) -> None:
        """Say that a tensor is on a CUDA device."""
        if x.dtype == torch.float64 and not self.float64:
            raise RuntimeError(f"Expected no float64 on this device; got {list(x.shape)}, at {blamed()}.")
        storage = _storage(x)
        size = storage.nbytes() if storage is not x else x.values().nbytes
        block = getattr(storage, "pretend_block", None)
        if block is None:
            storage.pretend_block = _Block(self.counters[device.index], size)
        else:
            block.resize(size)

    def note_wait(self, operator: str) -> None:
        self.waits.append(Wait(operator, blamed()))
        if self.mode == 2:
            raise RuntimeError(f"called a synchronizing CUDA operation: {operator}, at {blamed()}.")

    def copied(self, x: Tensor, device: torch.device, options: dict) -> Tensor:
        """Return a tensor's copy on another device."""
        with DisableTorchFunction():
            self.state.passing = True
            try:
                if self.compute or _device_of(x) == device == _CPU:
                    copy = torch.ops.aten._to_copy(x.detach(), **options)
                else:
                    like = torch.zeros_like if device == _CPU else torch.empty_like
                    copy = like(x, **options)
                if device.type == "cuda":
                    self.put(copy, device)
            finally:
                self.state.passing = False
            return copy

    def moved(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        """Do what `Tensor.to` does."""
        flags = ["copy", "non_blocking"]
        for value in args:
            if isinstance(value, Tensor):
                options |= {"device": _device_of(value), "dtype": value.dtype}
            elif isinstance(value, bool):
                options[flags.pop()] = value
            elif value is not None:
                options["dtype" if isinstance(value, torch.dtype) else "device"] = value
        source, wanted = _device_of(x), options.pop("device", None)
        device = source if wanted is None else _resolved(wanted)
        before = self.state.within
        if source == device or "meta" in (source.type, device.type):
            if device == _META:
                options["device"] = device
            self.state.within = source if source.type == "cuda" else None
            try:
                return _ORIGINAL["to"](x, **{"dtype": x.dtype, **options})
            finally:
                self.state.within = before
        if not options.pop("non_blocking", False) and (source == _CPU or device == _CPU):
            self.note_wait(f"a copy from {source} to {device}")
        options.pop("copy", None)
        if x.requires_grad and torch.is_grad_enabled():
            return _Move.apply(x, device, self, options)  # type: ignore[no-any-return]
        return self.copied(x, device, options)

    def _made(self, make: Callable) -> Callable:
        """Return `torch.tensor` or one of its like, which put what they were given on a device."""

        def making(data: Any, *args: Any, device: Any = None, **options: Any) -> Tensor:
            source = _device_of(data) if isinstance(data, Tensor) else _CPU
            requires_grad = options.pop("requires_grad", False)
            if source.type == "cuda" and make is torch.tensor:
                data = data.detach().clone()
            if source.type == "cuda":
                made = data.to(source if device is None else device, *args, **options)
            else:
                made = make(data, *args, **options)
                made = made if device is None else self.moved(made, device)
            return made.requires_grad_() if requires_grad else made

        return making

    def _array(self, x: Tensor, *, force: bool = False) -> Any:
        if _device_of(x).type == "cuda" and not force:
            raise TypeError(
                f"can't convert {_device_of(x)} device type tensor to numpy. Use Tensor.cpu() to copy the "
                f"tensor to host memory first, at {blamed()}."
            )
        return _ORIGINAL["numpy"](self.moved(x.detach() if force else x, _CPU))

    def _pinned(self, x: Tensor, *_device: Any) -> Tensor:
        if _device_of(x) != _CPU:
            raise RuntimeError(f"cannot pin {_device_of(x)}, only dense CPU tensors, at {blamed()}.")
        x = x.clone() if self.compute else torch.empty_like(x)
        _storage(x).pretend_pinned = True
        return x

    def _started(self, thread: threading.Thread) -> None:
        run = thread.run

        def running() -> None:
            with _Functions(self), _Operators(self):
                run()

        thread.run = running
        _START(thread)

    def _exchanged(self, device: Any) -> int:
        before = self.state.index
        if (index := device if isinstance(device, int) else _resolved(device).index) >= 0:
            self.state.index = _resolved(index).index
        return before

    def _patches(self) -> Iterator[tuple[Any, dict[str, Any]]]:
        """Yield what is exchanged inside the block: owners and their new attributes."""

        def counter(device: Any = None) -> _Counter:
            return self.counters[_resolved("cuda" if device is None else device).index]

        def set_fraction(fraction: float, device: Any = None) -> None:
            if isinstance(device, (str, torch.device)) and torch.device(device).index is None:
                raise ValueError(
                    f"Expected a torch.device with a specified index or an integer, got: {device}"
                )
            counter(device).limit = int(self.total * fraction)

        def reset_peak(device: Any = None) -> None:
            counter(device).peak = counter(device).now

        def set_mode(mode: str | int) -> None:
            self.mode = {"default": 0, "warn": 1, "error": 2}.get(mode, mode)

        def stats(device: Any = None) -> dict[str, int]:
            now, peak = counter(device).now, counter(device).peak
            names = ("active_bytes", "allocated_bytes", "reserved_bytes")
            return {f"{n}.all.{w}": v for n in names for w, v in (("current", now), ("peak", peak))}

        def properties(_device: Any = None) -> Any:
            name = {"name": "Pretend", "major": 9, "minor": 0, "gcnArchName": ""}
            return SimpleNamespace(total_memory=self.total, multi_processor_count=132, **name)

        def now(device: Any = None) -> int:
            return counter(device).now

        def peak(device: Any = None) -> int:
            return counter(device).peak

        def free(device: Any = None) -> tuple[int, int]:
            return self.total - counter(device).now, self.total

        def none(*_args: Any) -> int:
            return 0

        def nothing(*_args: Any, **_options: Any) -> None: ...

        moved = self.moved
        yield (
            torch.Tensor,
            {
                "device": property(_device_of),
                "is_cuda": property(lambda x: _device_of(x).type == "cuda"),
                "is_cpu": property(lambda x: _device_of(x).type == "cpu"),
                "get_device": lambda x: _device_of(x).index if _device_of(x).type == "cuda" else -1,
                "to": lambda x, *args, **options: moved(x, *args, **options),
                "type_as": lambda x, other: moved(x, other),
                "cpu": lambda x, **options: moved(x, _CPU, **options),
                "cuda": lambda x, device=None, **options: moved(x, device or "cuda", **options),
                "numpy": lambda x, **options: self._array(x, **options),
                "tolist": lambda x: _ORIGINAL["tolist"](moved(x, _CPU)),
                "new_tensor": lambda x, data, **options: torch.tensor(
                    data, **{"dtype": x.dtype, "device": _device_of(x), **options}
                ),
                "pin_memory": lambda x, *device: self._pinned(x, *device),
                "is_pinned": lambda x, *_device: getattr(_storage(x), "pretend_pinned", False),
                "record_stream": nothing,
            },
        )
        yield torch, {name: self._made(getattr(torch, name)) for name in ("tensor", "as_tensor", "asarray")}
        yield torch, {"Generator": _Generator}
        yield torch.version, {"cuda": "13.0"}
        yield threading.Thread, {"start": lambda thread: self._started(thread)}
        yield (
            torch.cuda,
            {
                **dict.fromkeys(("_lazy_init", "synchronize", "empty_cache", "ipc_collect"), nothing),
                **dict.fromkeys(("manual_seed", "manual_seed_all", "init"), nothing),
                **dict.fromkeys(
                    ("is_available", "is_initialized", "is_bf16_supported"), lambda *_, **__: True
                ),
                **dict.fromkeys(("Stream", "Event"), _Stream),
                **dict.fromkeys(("current_stream", "default_stream"), lambda device="cuda": _Stream(device)),
                **dict.fromkeys(("memory_allocated", "memory_reserved"), now),
                **dict.fromkeys(("max_memory_allocated", "max_memory_reserved"), peak),
                **dict.fromkeys(
                    ("_exchange_device", "_maybe_exchange_device", "set_device"), self._exchanged
                ),
                "stream": lambda stream: stream or _Stream(),
                "is_current_stream_capturing": lambda: False,
                "device_count": lambda: len(self.counters),
                "current_device": lambda: self.state.index,
                "mem_get_info": free,
                "memory_stats": stats,
                "reset_peak_memory_stats": reset_peak,
                "set_per_process_memory_fraction": set_fraction,
                "get_device_properties": properties,
                "get_device_name": lambda *_: "Pretend",
                "get_device_capability": lambda *_: (9, 0),
                "get_allocator_backend": lambda: "native",
                "cudart": lambda: SimpleNamespace(cudaHostRegister=none, cudaHostUnregister=none),
                "get_rng_state": lambda *_: torch.get_rng_state(),
                "set_rng_state": lambda state, *_: torch.set_rng_state(state),
                "set_sync_debug_mode": set_mode,
                "get_sync_debug_mode": lambda: self.mode,
            },
        )


_ORIGINAL = {name: getattr(torch.Tensor, name) for name in ("to", "numpy", "tolist")}
_START = threading.Thread.start
