"""The dashboard: pages for people at `/dashboard`, made here and usable without scripts."""
