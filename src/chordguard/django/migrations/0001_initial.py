from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        migrations.CreateModel(
            name="CountedMember",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("chord_id", models.CharField(max_length=155)),
                ("task_id", models.CharField(max_length=155)),
                ("payload", models.BinaryField(null=True)),
                ("attempt", models.CharField(max_length=32)),
            ],
            options={"default_permissions": ()},
        ),
        migrations.CreateModel(
            name="Counter",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("chord_id", models.CharField(max_length=155)),
                ("number", models.IntegerField()),
                ("expected", models.IntegerField()),
                ("returned", models.IntegerField()),
                ("failed", models.IntegerField()),
                ("progressed", models.FloatField()),
            ],
            options={"default_permissions": ()},
        ),
        migrations.CreateModel(
            name="LiveChord",
            fields=[
                ("id", models.CharField(max_length=155, primary_key=True, serialize=False)),
                ("body_id", models.CharField(max_length=155, null=True)),
                ("size", models.IntegerField(null=True)),
                ("returned", models.IntegerField()),
                ("failed", models.IntegerField()),
                ("counters", models.IntegerField()),
                ("created", models.FloatField()),
                ("progressed", models.FloatField()),
                ("due", models.FloatField()),
                ("claimed_by", models.CharField(max_length=36, null=True)),
                ("claimed_until", models.FloatField()),
                ("header", models.TextField(null=True)),
                ("body", models.BinaryField(null=True)),
                ("signatures", models.BinaryField(null=True)),
            ],
            options={
                "verbose_name": "live chord",
                "default_permissions": ("view",),
                "permissions": (
                    ("repair_livechord", "Can repair live chords"),
                    ("settle_livechord", "Can settle live chords"),
                    ("revoke_livechord", "Can revoke live chords"),
                ),
                "indexes": [
                    models.Index(fields=["due"], name="chordguard_due"),
                    models.Index(fields=["body_id"], name="chordguard_body"),
                ],
            },
        ),
        migrations.CreateModel(
            name="EndedChord",
            fields=[
                ("id", models.CharField(max_length=155, primary_key=True, serialize=False)),
                ("body_id", models.CharField(max_length=155, null=True)),
                ("size", models.IntegerField(null=True)),
                ("returned", models.IntegerField()),
                ("failed", models.IntegerField()),
                ("outcome", models.CharField(max_length=16)),
                ("created", models.FloatField()),
                ("ended", models.FloatField()),
            ],
            options={
                "default_permissions": (),
                "indexes": [models.Index(fields=["body_id"], name="chordguard_ended_body")],
            },
        ),
        migrations.AddConstraint(
            model_name="counter",
            constraint=models.UniqueConstraint(
                fields=("chord_id", "number"), name="chordguard_counter_no"
            ),
        ),
        migrations.AddConstraint(
            model_name="countedmember",
            constraint=models.UniqueConstraint(
                fields=("chord_id", "task_id"), name="chordguard_member"
            ),
        ),
    ]
