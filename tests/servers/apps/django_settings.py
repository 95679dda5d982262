"""What runserver needs to serve an app that is not Django's."""

SECRET_KEY = "of no use to anybody"
DEBUG = True
ROOT_URLCONF = "django_settings"
urlpatterns = []
WSGI_APPLICATION = "kinds.application"
