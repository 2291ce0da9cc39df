"""Program: extract the missing files of a rar with unrar2-cffi. A process of its own, because the library can hang.

Usage: unrar_cffi_program.py ARCHIVE FOLDER. The caller has checked the names of all members.
"""

import os
import sys

from unrar.cffi.unrarlib import FLAGS_RHDF_DIRECTORY, BadRarFile, RarArchive


def main(archive: str, folder: str) -> None:
    """Write every member that is not in the folder yet."""
    with RarArchive.open_for_processing(archive) as opened:
        for header in opened.iterate_headers():
            path = os.path.join(folder, header.FileNameW)
            if header.Flags & FLAGS_RHDF_DIRECTORY or os.path.lexists(path):
                header.skip()
                continue
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                header.test(file.write)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except BadRarFile as error:
        sys.exit(str(error))
