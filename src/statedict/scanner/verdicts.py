"""How loud the alarm is for a global that a pickle names.

Whether a global is safe the allow-list alone decides (`pickles.tables.DATA`): what stands in it is data. This table
only says which of the others are known to run code, so that `os.system` reads differently from an optimizer's class.
A name that is missing here is `opaque`, never `data`.

Sources: the modules of Python's and PyTorch's own documentation that run, import, load or reach code, and the names
that published attacks on pickle scanners used.
"""

from __future__ import annotations

import re

from statedict.reports.scan import DANGEROUS, DATA, OPAQUE
from statedict.scanner.names import ALTERED, COMPUTED, EXTENSION, MORE, NESTED, OBJECTS, GlobalRef

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container


_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_NAME = re.compile(r"[^\W\d]\w*")

_RUNS = "runs programs or code"
_LOADS = "loads a file or a pickle inside of the pickle, which may run anything"
_IMPORTS = "imports modules"
_REACHES = "reaches or makes functions by name"
_NATIVE = "calls or loads native code"
_FILES = "reads, writes or removes files"
_NETWORK = "talks to the network"
_PROCESSES = "starts threads or processes"
_SYSTEM = "alters the interpreter or the system"


def _each(why: str, names: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), why)


# a module, with all that is below it → why
_MODULES: dict[str, str] = {
    **_each(
        _RUNS,
        "os posix nt posixpath ntpath subprocess _posixsubprocess _winapi commands popen2 pty runpy code codeop timeit "
        "cProfile profile pstats pdb bdb trace doctest unittest pydoc idlelib lib2to3 distutils setuptools pip "
        "pkg_resources ensurepip venv virtualenv wsgiref cgi cgitb sched IPython ipykernel nose pytest _pytest "
        "fabric invoke sh pexpect paramiko psutil tracemalloc atexit signal faulthandler readline rlcompleter "
        "antigravity _testcapi _testinternalcapi compileall py_compile aifc test.support _osx_support _aix_support "
        "_pyrepl mailcap turtledemo _bootsubprocess pyximport Cython cython line_profiler _lsprof jupyter_client "
        "execnet _interpreters _xxsubinterpreters torch._sources torch._jit_internal torch._appdirs "
        "torch._functorch.config torch.cuda.jiterator keras.layers.core.Lambda keras.src.layers.core.lambda_layer "
        "numexpr sympy jinja2 mako fire torch.utils.bottleneck torch.utils.collect_env "
        "torch._dynamo torch._inductor torch._export torch.fx torch.testing torch._C._jit torch.compiler "
        "torch.utils._config_module torch.utils.data.datapipes torch.utils._sympy torch.utils.benchmark torch._lazy "
        "torch.distributed.launch torch.distributed.run torch.distributed.elastic torch.distributed.rpc "
        "torch.jit.unsupported_tensor_ops torch.jit.frontend torch.jit._script torch.onnx torch.utils.mobile_optimizer "
        "torch.utils.tensorboard torch.utils.model_dump torch.utils.show_pickle torch.utils.hipify "
        "numpy.f2py numpy.testing numpy.distutils numpy.lib.utils scipy.weave pandas.core.computation "
        "tensorflow.python.ops.script_ops",
    ),
    **_each(
        _LOADS,
        "pickle _pickle cPickle pickletools dill cloudpickle joblib sklearn.externals.joblib shelve dbm marshal "
        "jsonpickle yaml ruamel torch.package torch.hub torch.serialization torch.utils._import_utils "
        "torch.distributed.checkpoint.state_dict_loader torch.distributed.checkpoint.format_utils "
        "torch.distributed.checkpoint.filesystem numpy.lib.npyio numpy.lib._npyio_impl numpy.lib.format "
        "numpy.lib._format_impl pandas.io scipy.io keras.models keras.saving "
        "tensorflow.keras.models tensorflow.saved_model huggingface_hub safetensors.torch transformers.utils.hub "
        "transformers.dynamic_module_utils mlflow skops.io h5py xmlrpc sqlite3",
    ),
    **_each(
        _IMPORTS,
        "importlib _frozen_importlib _frozen_importlib_external imp _imp pkgutil zipimport zipapp modulefinder "
        "pyclbr encodings",
    ),
    **_each(_REACHES, "inspect gc ast symtable dis opcode"),
    **_each(
        _NATIVE,
        "ctypes _ctypes cffi _cffi_backend numpy.ctypeslib numba llvmlite torch.utils.cpp_extension torch.ops "
        "torch._ops torch.classes torch._classes torch.library torch._library triton cupy pycuda jnius",
    ),
    **_each(
        _FILES,
        "shutil tempfile pathlib fileinput glob mmap zipfile tarfile gzip bz2 lzma linecache filecmp fcntl "
        "torch.utils.data._utils torch.utils.file_baton torch.utils._content_store tokenize tabnanny netrc "
        "configparser logging.handlers gettext fsspec smart_open s3fs tensorflow.io tensorflow.raw_ops",
    ),
    **_each(
        _NETWORK,
        "socket _socket ssl _ssl socketserver http httplib httplib2 urllib urllib2 urllib3 requests aiohttp httpx "
        "ftplib smtplib smtpd telnetlib poplib imaplib nntplib webbrowser select selectors boto3 botocore twisted "
        "tornado websocket websockets git asyncore asynchat smtpd gradio flask django BaseHTTPServer SimpleHTTPServer "
        "CGIHTTPServer SocketServer",
    ),
    **_each(
        _PROCESSES,
        "multiprocessing _multiprocessing threading _thread thread asyncio _asyncio concurrent "
        "torch.multiprocessing ray dask distributed",
    ),
    **_each(
        _SYSTEM,
        "sys site sitecustomize usercustomize logging.config warnings sysconfig "
        "winreg _winreg msvcrt nturl2path resource pwd grp crypt termios tty ptyprocess getpass",
    ),
}

# names of a module which is not dangerous as a whole
_NAMES: dict[str, dict[str, str]] = {
    "builtins": {
        **_each(_RUNS, "eval exec execfile compile apply breakpoint reload"),
        **_each(_IMPORTS, "__import__ __build_class__"),
        **_each(
            _REACHES,
            "getattr setattr delattr hasattr globals locals vars dir type super map filter reduce iter next callable "
            "classmethod staticmethod property memoryview id",
        ),
        **_each(_FILES, "open file input raw_input print"),
        **_each(_SYSTEM, "exit quit help copyright credits license"),
    },
    "io": _each(_FILES, "open open_code FileIO"),
    "codecs": _each(_FILES, "open EncodedFile lookup register"),
    "_codecs": _each(_REACHES, "lookup register"),
    "functools": _each(_REACHES, "partial partialmethod reduce singledispatch singledispatchmethod cached_property"),
    "operator": _each(_REACHES, "attrgetter itemgetter methodcaller call"),
    "itertools": _each(_REACHES, "starmap accumulate takewhile dropwhile filterfalse groupby imap ifilter"),
    "types": _each(
        _REACHES,
        "FunctionType LambdaType CodeType MethodType ModuleType BuiltinFunctionType DynamicClassAttribute new_class "
        "prepare_class resolve_bases coroutine CellType MethodWrapperType",
    ),
    "copyreg": _each(_SYSTEM, "add_extension remove_extension clear_extension_cache pickle constructor"),
    "platform": _each(_RUNS, "popen _syscmd_ver _syscmd_file _syscmd_uname"),
    "uuid": _each(_RUNS, "_get_command_stdout _popen getnode _load_system_functions"),
    "collections": {"namedtuple": _RUNS},
    "dataclasses": _each(_RUNS, "make_dataclass _create_fn"),
    "typing": _each(_RUNS, "get_type_hints ForwardRef"),
    "torch": _each(_LOADS, "load from_file compile"),
    "torch.jit": _each(_LOADS, "load script trace _load script_if_tracing"),
    "torch.storage": _each(_LOADS, "_load_from_bytes _share_memory_map"),
    "torch.distributed.checkpoint": _each(_LOADS, "load load_state_dict"),
    "numpy": _each(
        _LOADS,
        "load loadtxt genfromtxt fromfile memmap fromregex fromfunction vectorize "
        "apply_along_axis apply_over_axes piecewise frompyfunc DataSource",
    ),
    "pandas": _each(_LOADS, "read_pickle eval read_csv read_hdf read_sql read_feather read_parquet"),
    "transformers": _each(_LOADS, "pipeline AutoModel AutoTokenizer AutoConfig"),
    "numpy.core.multiarray": {"fromfile": _FILES},
    "numpy.core.records": {"fromfile": _FILES},
    "argparse": {"FileType": _FILES},
    "datasets": _each(_LOADS, "load_dataset load_from_disk"),
    "spacy": {"load": _LOADS},
    "hashlib": {"file_digest": _FILES},
    "weakref": {"finalize": _SYSTEM},
    "logging": _each(_FILES, "FileHandler basicConfig"),
}
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
# what a dangerous module has that is none of it: classes which only hold values
_INERT: dict[str, Container[str]] = {
    "pathlib": {"PosixPath", "WindowsPath", "Path", "PurePath", "PurePosixPath", "PureWindowsPath"},
    "pathlib._local": {"PosixPath", "WindowsPath", "Path", "PurePath", "PurePosixPath", "PureWindowsPath"},
    "joblib.numpy_pickle": {"NumpyArrayWrapper"},
}
# beyond `pickles.tables.DATA` what a scan calls data: the records of a distributed checkpoint's index, which are read
# field by field and never built
RECORDS = {
    "pathlib PosixPath",
    "pathlib WindowsPath",
    "pathlib._local PosixPath",
    "pathlib._local WindowsPath",
    "torch.distributed.checkpoint.filesystem _StorageInfo",
    "torch.distributed.checkpoint.metadata BytesStorageMetadata",
    "torch.distributed.checkpoint.metadata ChunkStorageMetadata",
    "torch.distributed.checkpoint.metadata Metadata",
    "torch.distributed.checkpoint.metadata MetadataIndex",
    "torch.distributed.checkpoint.metadata StorageMeta",
    "torch.distributed.checkpoint.metadata TensorProperties",
    "torch.distributed.checkpoint.metadata TensorStorageMetadata",
    "torch.distributed.checkpoint.metadata _MEM_FORMAT_ENCODING",
}
_KINDS = {
    COMPUTED: "its name is computed or over 1,000 characters, so what it is cannot be told",
    EXTENSION: "a number of copyreg's registry, so what it is cannot be told",
    ALTERED: "something is stored in it: loading changes it for the whole process",
    OBJECTS: "an array of Python objects: each element is unpickled, and numpy.load needs allow_pickle=True",
    NESTED: "whatever unpacks it runs what it names",
    MORE: "more globals than any file of data names",
}


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
    if not _MODULE.fullmatch(module):
        return DANGEROUS, "the module's name is none that an import statement could hold"
    if not module.isascii():
        return DANGEROUS, "the module's name has letters beyond ASCII, which may look like another name"
    if "." in name:
        return DANGEROUS, "reaches through a module or a class by a dotted name"
    if not _NAME.fullmatch(name):
        return DANGEROUS, "a name that no program has"
    why = _alarm(module, name)
    if why:
        return DANGEROUS, why
    if name.startswith("__") and name.endswith("__"):
        return DANGEROUS, "an inner attribute of Python's"
    if module.startswith("__torch__"):
        return OPAQUE, "a class in the archive's own TorchScript code; kept inert"
    if module == "__main__":
        return OPAQUE, "a class of the script that saved it; kept inert"
    return OPAQUE, "not in the list of data; kept inert"


def _alarm(module: str, name: str) -> str:
    if name in _INERT.get(module, ()):
        return ""
    module = _SAME.get(module, module)
    if name in _NAMES.get(module, ()):
        return _NAMES[module][name]
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        why = _MODULES.get(".".join(parts[:length]))
        if why:
            return why
    return _MODULES.get(f"{module}.{name}", "")  # a module as a value
