from django.core.mail import send_mail
from django.http import HttpResponse, JsonResponse
from django.urls import path
from django.views.decorators.http import require_POST

from shop.models import Order
from wsgi_after.django import after_response


def confirm(order_id):
    order = Order.objects.get(pk=order_id)
    send_mail("Your order", f"We have order {order.pk}.", None, [order.email])
    order.mailed = True
    order.save()


@require_POST
def create(request):
    order = Order.objects.create(email=request.POST["email"])
    after_response(request, confirm, order.pk)
    return HttpResponse(f"Order {order.pk}: thank you.\n", status=201)


def orders(request):
    return JsonResponse({"orders": [*Order.objects.values("id", "email", "mailed")]})


urlpatterns = [path("orders", orders), path("orders/new", create)]
