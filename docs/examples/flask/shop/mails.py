import smtplib
from email.message import EmailMessage

from flask import current_app, request


def send_mail(to, subject):
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "shop@example.com", to, subject
    message.set_content(f"Thank you for your order at {request.host}")
    with smtplib.SMTP("127.0.0.1", current_app.config["SMTP_PORT"]) as smtp:
        smtp.send_message(message)
