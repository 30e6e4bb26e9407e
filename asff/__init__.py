"""The console command `asff`: runs every command of the project by a short name, from any folder."""
