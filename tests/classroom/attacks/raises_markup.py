"""An error message that would act, if something let it."""


def attack(*args):
    raise ValueError("\x00\x1b[2J\u202egnp.exe\ud800<script>alert(1)</script>]]>\x07" + "x" * 100_000)
