import os
from pathlib import Path

SECRET_KEY = "of no use to anybody"
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
ROOT_URLCONF = "shop.urls"
INSTALLED_APPS = ["shop"]
MIDDLEWARE = [
    "wsgi_after.django.AfterResponseMiddleware",  # first
    "django.middleware.common.CommonMiddleware",
]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": Path(__file__).parents[1] / "shop.sqlite3",
        "OPTIONS": {"timeout": 20},  # seconds to wait for another worker that writes
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
EMAIL_HOST = "127.0.0.1"
EMAIL_PORT = int(os.environ.get("EMAIL_PORT", "8025"))  # where aiosmtpd listens
DEFAULT_FROM_EMAIL = "shop@example.com"
