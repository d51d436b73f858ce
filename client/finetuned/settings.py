"""Where the service is and who is calling; from arguments, else the environment, else the defaults."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """The client's settings; each can be set by its environment variable."""

    model_config = SettingsConfigDict(env_prefix="FINETUNED_", frozen=True, extra="ignore")

    endpoint: str = "localhost:8433"
    """FINETUNED_ENDPOINT: `host:port`, or `https://host:port` for TLS with the system's roots."""
    tenant: str = Field(default="default", min_length=1)
    """FINETUNED_TENANT: whose adapters, datasets and jobs short names mean."""
    api_key: SecretStr | None = None
    """FINETUNED_API_KEY: sent as `authorization: Bearer ...` with every call."""
    ca: Path | None = None
    """FINETUNED_CA: PEM file of the authority that signed the server's certificate; turns TLS on."""
    metrics_url: str = "http://localhost:9464/metrics"
    """FINETUNED_METRICS_URL: the server's Prometheus page, for `finetuned metrics`."""

    @property
    def tls(self) -> bool:
        return self.ca is not None or self.endpoint.startswith("https://")

    @property
    def target(self) -> str:
        """The endpoint as gRPC wants it: without a scheme of HTTP."""
        for scheme in ("https://", "http://"):
            if self.endpoint.startswith(scheme):
                return self.endpoint.removeprefix(scheme).rstrip("/")
        return self.endpoint


def settings_of(
    *, endpoint: str | None, tenant: str | None, api_key: str | None, ca: str | Path | None
) -> Settings:
    """The settings with what is given; None leaves a setting to the environment."""
    given = {"endpoint": endpoint, "tenant": tenant, "api_key": api_key, "ca": ca}
    return Settings.model_validate({name: value for name, value in given.items() if value is not None})
