"""All settings of the server, parsed once: flags over environment (`FINETUNED_*`) over a TOML file.

The TOML file is `finetuned.toml` in the working directory, or the one that `FINETUNED_CONFIG` names.
`finetuned serve --help` prints the sentences below.
"""

from __future__ import annotations

import os
import socket
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import psutil
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from finetuned_service.errors import StartRefused
from finetuned_service.names import ID_PATTERN

MIB = 1024 * 1024
KV_BLOCK_TOKENS = 32
"""A multiple of the blocks of every path of the engine."""
GIB = 1024 * MIB

DEFAULT_BASE = "smollm2-135m-instruct"

MAX_LIMIT = 2**53
"""What JSON and TOML readers of every language carry without loss."""


def _limit(value: int) -> int:
    if not 1 <= value <= MAX_LIMIT:
        raise PydanticCustomError(
            "limit",
            "allowed: 1 to {most}. 0 means neither 'nothing' nor 'no limit': leave the line out for the "
            "default, or revoke a tenant's keys to keep it out",
            {"most": MAX_LIMIT},
        )
    return value


Limit = Annotated[int, AfterValidator(_limit)]
TenantId = Annotated[str, Field(pattern=rf"^{ID_PATTERN}$")]
Address = Annotated[str, Field(pattern=r"^[^\s:]+:\d{1,5}$|^\[[0-9a-f:]+\]:\d{1,5}$")]


ImportUrl = Annotated[str, Field(pattern=r"^[a-z][a-z0-9+.-]*://[^\s?#@\\]+$", max_length=1024)]
Days = Annotated[float, Field(ge=1 / 24, le=36_500, allow_inf_nan=False)]


class TenantLimits(BaseModel):
    """The most that one tenant may have and do; what is above is refused with RESOURCE_EXHAUSTED."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    storage_bytes: Limit = 256 * GIB
    """Datasets, uploads in progress, adapter versions, the tenant's own bases, and what its unfinished jobs
    may make. Content that tenants share counts for each of them."""
    datasets: Limit = 10_000
    """Datasets, and uploads that are to become one."""
    adapters: Limit = 10_000
    """Adapters, and those that unfinished jobs will make."""
    adapter_versions: Limit = 100_000
    """Versions of all its adapters together, and those that unfinished jobs will make."""
    unfinished_jobs: Limit = 100
    """Jobs that are queued, running or paused."""
    streams: Limit = 1_000
    """Streaming calls and batches at the same time, on one replica."""
    requests_per_second: Limit = 10_000
    """Calls a second, on one replica; after a pause as many at once."""


class Settings(BaseSettings):
    """Serve one base model and its adapters over gRPC, train new adapters, quantize."""

    model_config = SettingsConfigDict(
        env_prefix="FINETUNED_",
        env_nested_delimiter="__",
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        cli_kebab_case=True,
        cli_prog_name="finetuned serve",
        cli_implicit_flags=True,
    )

    data_dir: Path = Path("data")
    """Directory of everything the server keeps: database, bases, adapters, datasets, jobs."""
    cache_dir: Path | None = None
    """Directory of code compiled for this machine; default `finetuned` in the user's cache directory."""
    database_url: str = ""
    """SQLAlchemy URL of the store; empty means SQLite in the data directory."""
    base: str = DEFAULT_BASE
    """The base to hold in memory: the name of one in the data directory, or of a packaged one, which is
    converted once; or a directory (beginning with /, ./ or ../), which is brought in once, under its own name."""
    base_source: str = Field(default="", max_length=2048)
    """Where the base comes from if the data directory does not have it: a directory, file:///directory,
    packaged:NAME, hf://org/name@revision or an URL of fsspec such as s3://bucket/prefix. It is fetched once
    and kept under the name that `base` gives it; credentials stay in the environment (HF_TOKEN, AWS_*)."""
    base_digest: Annotated[str, Field(pattern=r"^(sha256:[0-9a-f]{64})?$")] = ""
    """The digest that the base must have ('finetuned base list' tells it); empty takes what is there. Set it
    in production: a branch of a hub and a bucket can change."""
    listen_address: Address = "127.0.0.1:8433"
    """Host and port of the gRPC API."""
    health_address: Address = "127.0.0.1:8434"
    """Host and port of grpc.health.v1, apart from the API so that load never fails a probe. Without TLS and
    keys, also beyond loopback: probes of Kubernetes speak neither."""
    metrics_address: Address = "127.0.0.1:9464"
    """Host and port of the Prometheus metrics over HTTP. Without TLS and keys, also beyond loopback: let only
    Prometheus reach it, or set metrics_max_adapters to 0."""
    tls_certificate_file: Path | None = None
    """Certificate of the API in PEM, then those of its authorities; read again when it changes."""
    tls_key_file: Path | None = None
    """Private key of that certificate in PEM, without a password."""
    keys_file: Path | None = None
    """API keys, as 'finetuned keys' writes them; read again when it changes. Default: keys.json in the data
    directory, where there is one. With a keys file every call needs a key, without one none does."""
    insecure: bool = False
    """Listen beyond loopback although TLS or API keys are missing: whoever reaches the port may read what
    passes and, without keys, change what every tenant has. For networks that something else guards."""
    metrics_max_adapters: int = Field(default=32, ge=0, le=1000)
    """The most adapters that metrics name at once (with their tenants, to whoever may scrape); 0 names none."""
    metrics_vllm_aliases: bool = False
    """Show the gauges for routing by the Gateway API inference extension under vLLM's names too."""
    replica: str = Field(default_factory=socket.gethostname)
    """This replica's name, as served_by and residency tell it."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d{1,2})?)$")] = "auto"
    """Where the base is, and its jobs compute: `cpu`, `cuda` or `cuda:N` (the Nth GPU, from 0), or `auto`: the first
    GPU that torch finds, else the CPU."""
    compute: Literal["auto", "native", "plain"] = "auto"
    """How the engine computes: `native` (compiled for this machine at the first start, which needs a C++
    compiler), `plain` PyTorch, or `auto`: native where the device is a CPU and this machine and the base allow it."""
    threads: int = Field(default_factory=lambda: len(os.sched_getaffinity(0)), ge=1, le=1024)
    """Compute threads of the engine."""
    max_running_sequences: int = Field(default=32, ge=1, le=1024)
    """The most sequences in one batch."""
    max_queued_sequences: int = Field(default=256, ge=0, le=100_000)
    """The most sequences waiting for a place; more are refused with RESOURCE_EXHAUSTED."""
    max_tenant_queue_share: float = Field(default=0.75, ge=0.05, le=1.0)
    """The part of all places, in the batch and waiting, that one tenant may take; the less is free, the smaller,
    so that some are always left for others. 1 lets one tenant take all; the batch alone it may always fill."""
    max_prefill_tokens: int | None = Field(default=None, ge=16, le=65_536)
    """Prompt tokens processed in one step beside the running sequences; default 512 on a CPU, 8,192 on a GPU."""
    kv_cache_tokens: int = Field(default=32_768, ge=256)
    """Size of the KV cache in tokens of all sequences together, rounded up to whole blocks of 32; on a CPU pages are touched
    as they are used, on a GPU all of it is taken at the start."""
    adapter_device_bytes: int = Field(default=GIB, ge=MIB)
    """Memory for adapters in the serving layout; the least recently used are evicted. On a GPU so much is taken at the
    start for low-rank updates, and whole parameters take as much again at most."""
    adapter_host_bytes: int = Field(default=GIB, ge=MIB)
    """Memory for adapters read but not in the serving layout."""
    max_tenant_pin_share: float = Field(default=0.75, ge=0.05, le=1.0)
    """The part of each of the two that one tenant may pin; the more others have pinned, the smaller, so that some is always left
    for adapters that are not. 1 lets one tenant pin all; so may admins, and whoever calls a server that asks for no keys."""
    max_lora_rank: int = Field(default=256, ge=1, le=1024)
    """The largest LoRA rank accepted."""
    max_upload_bytes: int = Field(default=256 * MIB, ge=1024)
    """The largest upload of a dataset or an adapter."""
    max_line_bytes: int = Field(default=MIB, ge=1024)
    """The longest line of a dataset."""
    import_roots: Annotated[tuple[Path, ...], NoDecode] = ()
    """Directories (separated by ':') under which ImportDataset may read file:// URIs; none by default."""
    import_urls: Annotated[tuple[ImportUrl, ...], NoDecode] = ()
    """URLs of object stores (separated by ','), such as s3://bucket/prefix, under which ImportDataset may read;
    none by default. Where a web server (https://host/directory) redirects to is followed. Credentials stay in the
    environment (AWS_*)."""
    max_unpacked_bytes: int = Field(default=GIB, ge=MIB, le=1024 * GIB)
    """The most that a compressed dataset (gzip, zip, Parquet) may unpack to, and that the rows of any may take as they are stored."""
    max_image_bytes: int = Field(default=16 * MIB, ge=1024, le=16 * MIB)
    """The largest image of a dataset; a base takes no larger one."""
    max_image_pixels: int = Field(default=32 * MIB, ge=1024, le=32 * MIB)
    """Width times height of the largest image of a dataset; a base takes no larger one."""
    run_jobs: bool = True
    """Run jobs in processes beside the server; off where separate workers take them from the store."""
    max_running_jobs: int = Field(default=1, ge=1, le=64)
    """The most jobs at once."""
    job_slice_seconds: float = Field(default=1800.0, ge=1.0, le=7 * 86_400.0)
    """How long a job runs, from its first step on, before it makes room, with a checkpoint, for a waiting job of a
    tenant that has had less time of the workers lately; jobs of higher priority do not wait so long."""
    job_threads: int = Field(default_factory=lambda: len(os.sched_getaffinity(0)), ge=1, le=1024)
    """Compute threads of a job process, which runs when serving leaves the processors idle; see job_share."""
    job_share: float = Field(default=0.22, ge=0.0, le=0.5)
    """The part of its time that the engine leaves to jobs of this server while requests keep it busy, by pauses
    between steps of at most 30 ms (on CPUs); besides it they have what serving leaves idle. 0 leaves them only that, and
    so does a worker apart from the server."""
    job_memory_bytes: int = Field(default_factory=lambda: psutil.virtual_memory().total // 2, ge=256 * MIB)
    """Private memory of a job process above which it stops itself; default half of the machine's."""
    job_device_bytes: int = Field(default=0, ge=0, le=MAX_LIMIT)
    """GPU memory that a job process may allocate: above it the batch is halved once, then the job fails. A base that it
    opens from its server is not counted, a copy that it loads is. 0 leaves it what is free."""
    job_probe_steps: int = Field(default=5, ge=0, le=100)
    """Steps that a TrainJob measures and undoes before its first one, besides the largest, to tell its time and memory;
    fewer for short jobs. 0 measures nothing but what waits for its estimate (pause_after_estimate)."""
    job_checkpoint_bytes: int = Field(default=16 * GIB, ge=MIB, le=MAX_LIMIT)
    """Disk space for the checkpoints of one job; it keeps fewer than it was asked to where they need more, and
    does not begin where three have no room: the last one, the best one and the one being written."""
    lease_seconds: float = Field(default=30.0, ge=1.0, le=3600.0)
    """How long a job waits for a worker that has gone silent before another takes it."""
    shutdown_grace_seconds: float = Field(default=20.0, ge=0.0, le=3600.0)
    """Time for running requests to finish and for jobs to write a checkpoint when the server stops."""
    job_retention_days: Days | None = None
    """How long finished jobs are kept, after their end; not set: until the data directory goes. The job of an
    adapter version that exists is kept with it."""
    job_event_retention_days: Days | None = None
    """How long the events of finished jobs are kept, after the job's end; not set: as long as the job."""
    version_retention_days: Days | None = None
    """How long adapter versions are kept that no alias points to or can go back to; not set: until they are
    deleted. What is in use, pinned, or named by an unfinished job stays."""
    upload_retention_days: Days = 7.0
    """How long an upload waits for its end, after its start."""
    min_free_disk_bytes: int = Field(default=256 * MIB, ge=0)
    """Room that data_dir must have for the server to start, and for jobs to go on: with less they are paused,
    and resumed when there is what each wants beside it, at least as much again."""
    sweep_interval_seconds: float = Field(default=3600.0, ge=1.0, le=7 * 86_400.0)
    """Time between two sweeps, which remove what has expired and files that nothing names."""
    limits: TenantLimits = TenantLimits()
    """What each tenant may have and do at most: `[limits]` in the file."""
    tenants: dict[TenantId, TenantLimits] = Field(default_factory=dict[str, TenantLimits])
    """Other limits for single tenants: `[tenants.NAME]` in the file; what it leaves out is as in limits."""
    verify_base: bool = True
    """Compare the digest of the base's file with its manifest at start."""
    log_format: Literal["console", "json"] = "console"
    """How log lines look."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe log lines shown."""

    @field_validator("keys_file", "cache_dir", "tls_certificate_file", "tls_key_file", mode="before")
    @classmethod
    def _unset(cls, value: object) -> object:
        """As an environment says it that has the variable in any case."""
        return None if value == "" else value

    @field_validator("kv_cache_tokens")
    @classmethod
    def _whole_blocks(cls, value: int) -> int:
        """What a call is promised is what there is."""
        return -(-value // KV_BLOCK_TOKENS) * KV_BLOCK_TOKENS

    @field_validator("import_roots", mode="before")
    @classmethod
    def _split_roots(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(Path(part) for part in value.split(":") if part)
        return value

    @field_validator("import_urls", mode="before")
    @classmethod
    def _split_urls(cls, value: object) -> object:
        if isinstance(value, str):
            value = tuple(part.strip() for part in value.split(",") if part.strip())
        if isinstance(value, tuple) and any(str(part).startswith("file:") for part in value):
            raise PydanticCustomError("import_urls", "directories of this machine stand in import_roots")
        return value

    @field_validator("base_source")
    @classmethod
    def _named_source(cls, value: str, info: ValidationInfo) -> str:
        if value and not value.startswith("packaged:") and info.data.get("base") == DEFAULT_BASE:
            raise PydanticCustomError(
                "base_source", "base is still '{name}'; set base to a name of its own", {"name": DEFAULT_BASE}
            )
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings, env_settings, _file_settings(settings_cls))

    @property
    def resolved_cache_dir(self) -> str:
        """As engine and jobs take it: empty for the user's cache directory."""
        return "" if self.cache_dir is None else str(self.cache_dir.resolve())

    @property
    def resolved_database_url(self) -> str:
        return self.database_url or f"sqlite:///{(self.data_dir / 'finetuned.db').resolve()}"

    def limits_of(self, tenant: str) -> TenantLimits:
        """The limits that hold for a tenant."""
        own = self.tenants.get(tenant)
        return (
            self.limits if own is None else self.limits.model_copy(update=own.model_dump(exclude_unset=True))
        )

    @classmethod
    def under(cls, **options: Any) -> Self:
        """Settings of a command that has some of them as options; those that are None were not given.

        Raises:
            pydantic.ValidationError: for a value that is not allowed.
            StartRefused: the file that FINETUNED_CONFIG names is missing, or the file cannot be read.
        """
        return cls(**{name: value for name, value in options.items() if value is not None})

    @classmethod
    def from_arguments(cls, arguments: Sequence[str]) -> Self:
        """Settings from command-line flags over environment over file.

        Raises:
            SystemExit: after `--help`, or with a message for a flag that is not understood.
            pydantic.ValidationError: for a value that is not allowed.
            StartRefused: the file that FINETUNED_CONFIG names is missing, or the file cannot be read.
        """
        return cls(_cli_parse_args=list(arguments))  # pyright: ignore[reportCallIssue]  # pydantic-settings' own argument


def _file_settings(settings_class: type[BaseSettings]) -> TomlConfigSettingsSource:
    """A file that is named must be there: without it a server would start with other limits, elsewhere."""
    named = os.environ.get("FINETUNED_CONFIG", "")
    path = Path(named or "finetuned.toml")
    if named and (not path.exists() or path.is_dir()):
        raise StartRefused(
            f"FINETUNED_CONFIG names {named!r}, which is no file; correct it, or unset it to go without a file"
        )
    try:
        return TomlConfigSettingsSource(settings_class, path)
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StartRefused(f"{path} cannot be read as TOML: {error}; correct it") from error
