"""Requirements and version come from settings.ini, so that they are written once."""

from configparser import ConfigParser

from setuptools import setup

settings = ConfigParser()
settings.read("settings.ini", encoding="utf-8")
settings = settings["DEFAULT"]

extras = {key.removesuffix("_requirements"): settings[key].split() for key in settings if key.endswith("_requirements")}
extras["all"] = sorted({name for key in ("chapters", "dev", "docs", "interop") for name in extras[key]})

setup(
    version=settings["version"],
    description=settings["description"],
    install_requires=settings["requirements"].split(),
    extras_require=extras,
)
