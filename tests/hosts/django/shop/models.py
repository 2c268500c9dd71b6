from django.db import models


class Row(models.Model):
    n = models.IntegerField(primary_key=True)
    who = models.TextField()
    note = models.TextField(default="")

    class Meta:
        db_table = "t"
