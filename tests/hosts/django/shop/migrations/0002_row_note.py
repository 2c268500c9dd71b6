from django.db import migrations, models


class Migration(migrations.Migration):
    """Django makes a new table, copies, and renames it: a schema change in one transaction."""

    dependencies = [("shop", "0001_initial")]
    operations = [
        migrations.AddField("row", "note", models.TextField(default="")),
        migrations.AlterField("row", "who", models.TextField(db_index=True)),
        migrations.AlterField("row", "who", models.TextField()),
    ]
