"""``uv run uvicorn gateway.main:app``, configured by ``GATEWAY_CONFIG``."""

from gateway.app import create_app
from gateway.settings.environment import config_path
from gateway.settings.loader import load_settings
from gateway.settings.schema import SettingsError

_path = config_path()
if _path is None:
    raise SettingsError(["GATEWAY_CONFIG: not set; it names the configuration file"])

app = create_app(load_settings(_path))
