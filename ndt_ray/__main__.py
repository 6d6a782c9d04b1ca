"""`python -m ndt_ray` is `ndt`."""

from ndt_ray.cli import main

if __name__ == "__main__":
    main()
