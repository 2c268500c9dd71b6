from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True
    dependencies = []
    operations = [
        migrations.CreateModel(
            name="Row",
            fields=[
                ("n", models.IntegerField(primary_key=True, serialize=False)),
                ("who", models.TextField()),
            ],
            options={"db_table": "t"},
        ),
    ]
