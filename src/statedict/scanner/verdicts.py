"""Verdicts on the globals that a pickle names; how pickles begin, and when what a walk went over is one.

The allow-list alone (`pickles.tables.DATA`) decides that a global is data. The tables here only say which of the others
are known to run code, so that `os.system` reads differently from an optimizer's class. A name in no table is `opaque`,
never `data`.

Sources: the modules in the documentation of Python and PyTorch that run, import, load or reach code, and the names in
published attacks on pickle scanners.
"""

from __future__ import annotations

import re
from collections.abc import Container
from functools import cache

from statedict.pickles import tables
from statedict.reports.outcomes import DANGEROUS, DATA, OPAQUE
from statedict.scanner.containers import EXPECTED, WHOLE, Part
from statedict.scanner.globals import Walk
from statedict.scanner.names import ALTERED, COMPUTED, EXTENSION, MORE, NESTED, OBJECTS, GlobalRef

IDENTIFIERS = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_NAME = re.compile(r"[^\W\d]\w*")

# why something is dangerous; then modules, with all that is below them, and names in other modules
_ALARMS = """\
runs programs or code
    os posix nt posixpath ntpath subprocess _posixsubprocess _winapi commands popen2 pty runpy code codeop timeit
    cProfile profile pstats pdb bdb trace doctest unittest pydoc idlelib lib2to3 distutils setuptools pip
    pkg_resources ensurepip venv virtualenv wsgiref cgi cgitb sched IPython ipykernel nose pytest _pytest fabric
    invoke sh pexpect paramiko psutil tracemalloc atexit signal faulthandler readline rlcompleter antigravity
    _testcapi _testinternalcapi compileall py_compile aifc test.support _osx_support _aix_support _pyrepl mailcap
    turtledemo _bootsubprocess pyximport Cython cython line_profiler _lsprof jupyter_client execnet _interpreters
    _xxsubinterpreters torch._sources torch._jit_internal torch._appdirs torch._functorch.config
    torch.cuda.jiterator keras.layers.core.Lambda keras.src.layers.core.lambda_layer numexpr sympy jinja2 mako fire
    torch.utils.bottleneck torch.utils.collect_env torch._dynamo torch._inductor torch._export torch.fx
    torch.testing torch._C._jit torch.compiler torch.utils._config_module torch.utils.data.datapipes
    torch.utils._sympy torch.utils.benchmark torch._lazy torch.distributed.launch torch.distributed.run
    torch.distributed.elastic torch.distributed.rpc torch.jit.unsupported_tensor_ops torch.jit.frontend
    torch.jit._script torch.onnx torch.utils.mobile_optimizer torch.utils.tensorboard torch.utils.model_dump
    torch.utils.show_pickle torch.utils.hipify numpy.f2py numpy.testing numpy.distutils numpy.lib.utils scipy.weave
    pandas.core.computation tensorflow.python.ops.script_ops
    builtins: eval exec execfile compile apply breakpoint reload
    platform: popen _syscmd_ver _syscmd_file _syscmd_uname
    uuid: _get_command_stdout _popen getnode _load_system_functions
    collections: namedtuple
    dataclasses: make_dataclass _create_fn
    typing: get_type_hints ForwardRef
loads a file or a pickle inside of the pickle, which may run anything
    pickle _pickle cPickle pickletools dill cloudpickle joblib sklearn.externals.joblib shelve dbm marshal
    jsonpickle yaml ruamel torch.package torch.hub torch.serialization torch.utils._import_utils
    torch.distributed.checkpoint.state_dict_loader torch.distributed.checkpoint.format_utils
    torch.distributed.checkpoint.filesystem numpy.lib.npyio numpy.lib._npyio_impl numpy.lib.format
    numpy.lib._format_impl pandas.io scipy.io keras.models keras.saving tensorflow.keras.models
    tensorflow.saved_model huggingface_hub safetensors.torch transformers.utils.hub
    transformers.dynamic_module_utils mlflow skops.io h5py xmlrpc sqlite3
    torch: load from_file compile
    torch.jit: load script trace _load script_if_tracing
    torch.storage: _load_from_bytes _share_memory_map
    torch.distributed.checkpoint: load load_state_dict
    numpy: load loadtxt genfromtxt fromfile memmap fromregex fromfunction vectorize apply_along_axis apply_over_axes
    numpy: piecewise frompyfunc DataSource
    pandas: read_pickle eval read_csv read_hdf read_sql read_feather read_parquet
    transformers: pipeline AutoModel AutoTokenizer AutoConfig
    datasets: load_dataset load_from_disk
    spacy: load
imports modules
    importlib _frozen_importlib _frozen_importlib_external imp _imp pkgutil zipimport zipapp modulefinder pyclbr
    encodings
    builtins: __import__ __build_class__
reaches or makes functions by name
    inspect gc ast symtable dis opcode
    builtins: getattr setattr delattr hasattr globals locals vars dir type super map filter reduce iter next callable
    builtins: classmethod staticmethod property memoryview id
    _codecs: lookup register
    functools: partial partialmethod reduce singledispatch singledispatchmethod cached_property
    operator: attrgetter itemgetter methodcaller call
    itertools: starmap accumulate takewhile dropwhile filterfalse groupby imap ifilter
    types: FunctionType LambdaType CodeType MethodType ModuleType BuiltinFunctionType DynamicClassAttribute new_class
    types: prepare_class resolve_bases coroutine CellType MethodWrapperType
calls or loads native code
    ctypes _ctypes cffi _cffi_backend numpy.ctypeslib numba llvmlite torch.utils.cpp_extension torch.ops torch._ops
    torch.classes torch._classes torch.library torch._library triton cupy pycuda jnius
reads, writes or removes files
    shutil tempfile pathlib fileinput glob mmap zipfile tarfile gzip bz2 lzma linecache filecmp fcntl
    torch.utils.data._utils torch.utils.file_baton torch.utils._content_store tokenize tabnanny netrc configparser
    logging.handlers gettext fsspec smart_open s3fs tensorflow.io tensorflow.raw_ops
    builtins: open file input raw_input print
    io: open open_code FileIO
    codecs: open EncodedFile lookup register
    numpy.core.multiarray: fromfile
    numpy.core.records: fromfile
    argparse: FileType
    hashlib: file_digest
    logging: FileHandler basicConfig
talks to the network
    socket _socket ssl _ssl socketserver http httplib httplib2 urllib urllib2 urllib3 requests aiohttp httpx ftplib
    smtplib smtpd telnetlib poplib imaplib nntplib webbrowser select selectors boto3 botocore twisted tornado
    websocket websockets git asyncore asynchat gradio flask django BaseHTTPServer SimpleHTTPServer CGIHTTPServer
    SocketServer
starts threads or processes
    multiprocessing _multiprocessing threading _thread thread asyncio _asyncio concurrent torch.multiprocessing ray
    dask distributed
alters the interpreter or the system
    sys site sitecustomize usercustomize logging.config warnings sysconfig winreg _winreg msvcrt nturl2path resource
    pwd grp crypt termios tty ptyprocess getpass
    builtins: exit quit help copyright credits license
    copyreg: add_extension remove_extension clear_extension_cache pickle constructor
    weakref: finalize
"""
# Python 2's and CPython's inner names for the same modules
_SAME = {
    "__builtin__": "builtins",
    "_io": "io",
    "_pyio": "io",
    "_operator": "operator",
    "_functools": "functools",
    "copy_reg": "copyreg",
    "torch.jit._serialization": "torch.jit",
    "pandas.core.api": "pandas",
    "numpy._core.multiarray": "numpy.core.multiarray",
    "numpy._core.records": "numpy.core.records",
}
# harmless classes of dangerous modules, which only hold values
_INERT: dict[str, Container[str]] = {
    "pathlib": {"PosixPath", "WindowsPath", "Path", "PurePath", "PurePosixPath", "PureWindowsPath"},
    "pathlib._local": {"PosixPath", "WindowsPath", "Path", "PurePath", "PurePosixPath", "PureWindowsPath"},
    "joblib.numpy_pickle": {"NumpyArrayWrapper"},
}
# also data to a scan: the records in the index of a distributed checkpoint, which are read field by field, never built,
# the pairs of Paddle's files, and the arrays of joblib's
ALLOWED = tables.DATA.keys() | {
    "builtins tuple",
    "joblib.numpy_pickle NumpyArrayWrapper",
    *(f"{module} {name}" for module in ("pathlib", "pathlib._local") for name in ("PosixPath", "WindowsPath")),
    "torch.distributed.checkpoint.filesystem _StorageInfo",
    *(
        f"torch.distributed.checkpoint.metadata {name}"
        for name in (
            "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta",
            "TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
        )
    ),
}  # fmt: skip
_KINDS = {
    COMPUTED: "its name is computed or over 1,000 characters, so it cannot be identified",
    EXTENSION: "a number of copyreg's registry, so it cannot be identified",
    ALTERED: "something is stored in it: loading changes it for the whole process",
    OBJECTS: "an array of Python objects: each element is unpickled, and numpy.load needs allow_pickle=True",
    NESTED: "whatever unpacks it runs what it names",
    MORE: "more globals than a file of data names",
}

STRONG = re.compile(rb"\x80[\x00-\x05]")  # PROTO, which nearly every pickle begins with
_OLD = re.compile(rb"[(\]})]|c[\w.]+\n[\w.]+\n")  # how those of protocols 0 and 1 begin
_LINES = re.compile(rb"(?:[\t\r\x20-\x7e\x80-\xff]+\n){3,}[\t\r\x20-\x7e\x80-\xff]*")  # how text begins
_COMPUTED = re.compile(r"[\w.?]+")
# how something may begin in the midst of other bytes: a pickle, a pickle without PROTO, a record of a zip archive
_HIDDEN = (
    re.compile(rb"\x80[\x00-\x05][\x00-\xff]"),
    re.compile(rb"\x8c[\x01-\x7f][A-Za-z_][\w.]{0,126}(?:\x94|q.|r.{4})?[\x8cXU]", re.DOTALL),
    re.compile(rb"PK\x03\x04"),
)
# the line feed after a module, before a name and an opcode that may follow
_LINE = re.compile(rb"\n(?=[A-Za-z_][\w.]{0,127}\n(?:[(q)\]}XUVSNKJMLITCBRG.0cb\x80-\xff]|p\d))")
_WORD = re.compile(rb"[\w.]{1,128}\Z")
PATIENCE = 1 << 20  # opcodes without a global after which a walk gives up
GLANCE = 1 << 12  # the same, where an archive says tensor
# costs, in bytes of the budget: of a search for a pickle, an opcode, a name; and bytes of a line that cost one
PICKLE, OPCODE, _LISTED, _SEARCHED = 256, 4, 40, 16
_SURE = 16  # random bytes do not get through so many opcodes


def grade(ref: GlobalRef, allowed: Container[str]) -> tuple[str, str]:
    """The verdict on a global, and why.

    Args:
        ref: from a walk.
        allowed: the allow-list, "module name".

    >>> grade(GlobalRef("collections", "OrderedDict", "", 0), {"collections OrderedDict"})
    ('data', 'builds data')
    >>> grade(GlobalRef("posix", "system", "", 0), ())
    ('dangerous', 'runs programs or code')
    >>> grade(GlobalRef("my_package", "Config", "", 0), ())[0]
    'opaque'
    """
    module, name = ref.module, ref.name
    if ref.kind:
        return DANGEROUS, _KINDS[ref.kind]
    if f"{module} {name}" in allowed:
        return DATA, "builds data"
    if not IDENTIFIERS.fullmatch(module):
        return DANGEROUS, "no import statement could hold this module name"
    if not module.isascii():
        return DANGEROUS, "the module name has letters beyond ASCII, which may look like another name"
    if "." in name:
        return DANGEROUS, "reaches through a module or a class by a dotted name"
    if not _NAME.fullmatch(name):
        return DANGEROUS, "not a valid Python name"
    why = _alarm(module, name)
    if why:
        return DANGEROUS, why
    if name.startswith("__") and name.endswith("__"):
        return DANGEROUS, "a special attribute of Python"
    if module.startswith("__torch__"):
        return OPAQUE, "a class in the archive's own TorchScript code; kept inert"
    if module == "__main__":
        return OPAQUE, "a class of the script that saved it; kept inert"
    return OPAQUE, "not in the list of data; kept inert"


def _alarm(module: str, name: str) -> str:
    if name in _INERT.get(module, ()):
        return ""
    module = _SAME.get(module, module)
    parts = module.split(".")
    above = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    keys = f"{module} {name}", *above, f"{module}.{name}"  # the last one is a module as a value
    alarms = _read_alarms()
    return next((alarms[key] for key in keys if key in alarms), "")


@cache
def _read_alarms() -> dict[str, str]:
    """A module, or "module name" → why it is dangerous."""
    alarms: dict[str, str] = {}
    why = ""
    for line in _ALARMS.splitlines():
        if line.startswith(" "):
            module, colon, names = line.strip().rpartition(":")
            alarms |= {f"{module} {name}" if colon else name: why for name in names.split()}
        else:
            why = line
    return alarms


def find_beginnings(data: bytes, done: int) -> list[int]:
    """Offsets where something may begin in bytes of no known form; what lies before `done` is known."""
    starts = {match.start() for pattern in _HIDDEN for match in pattern.finditer(data)}
    for match in _LINE.finditer(data):
        word = _WORD.search(data, max(0, match.start() - 128), match.start())
        if word:
            letters = {word.start() + at for at, letter in enumerate(word[0][:-1]) if letter in b"ci"}
            starts |= letters
            if any(data[at] == 0x69 for at in letters):  # INST takes what follows a MARK
                starts.add(max(done, 0, data.rfind(b"(", max(0, word.start() - 256), word.end())))
    return sorted(starts)


def is_lines(head: bytes) -> bool:
    """Whether bytes are three lines of text or more: a list of words may look like names."""
    return _LINES.fullmatch(head) is not None


def is_pickle(walked: Walk, part: Part, sure: bool) -> bool:
    """Whether a walk went over a pickle, and not over other bytes that happen to look like one.

    Tensors begin in every way. Without PROTO (`sure`) and a role that says pickle, it takes a name that could be
    imported.
    """
    whole, expected = part.role == WHOLE, part.role == EXPECTED
    known = [ref for ref in walked.globals if _is_importable(ref, bool(walked.problem))]
    if not walked.problem:
        alone = whole and not part.read(walked.end, 1)
        return sure or expected or alone or bool(known) or (whole and bool(walked.globals))
    if (
        (whole and known and not is_lines(part.read(walked.start, 512)))
        or (walked.crossed and (whole or sure))
        or (sure and (whole or expected or known or walked.opcodes >= _SURE))
        or (expected and walked.opcodes > 1)
    ):
        return True
    if whole and walked.truncated and walked.opcodes >= _SURE // 2 and _OLD.match(part.read(walked.start, 160)):
        return True
    last = None if whole else walked.cut  # tensors begin so by chance; no other opcode bears it out
    return any(ref.called or grade(ref, ALLOWED)[0] == DANGEROUS for ref in known if ref is not last)


def _is_importable(ref: GlobalRef, broken: bool) -> bool:
    if ref.kind in (EXTENSION, COMPUTED):
        certain = ref.kind == EXTENSION and not broken
        return ref.called > 0 and (certain or bool(_COMPUTED.fullmatch(ref.module + ref.name)))
    return ref.kind in ("", ALTERED) and bool(IDENTIFIERS.fullmatch(ref.module) and IDENTIFIERS.fullmatch(ref.name))


def cost_of(walked: Walk) -> int:
    """The cost of a walk, in bytes of the budget."""
    names = sum(ref.count for ref in walked.globals)
    return PICKLE + OPCODE * walked.opcodes + _LISTED * names + walked.searched // _SEARCHED
