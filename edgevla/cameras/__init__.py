"""Where pictures come from: V4L2 cameras, GStreamer pipelines, image folders, videos; `open_source` picks by look."""

from __future__ import annotations

from pathlib import Path

from edgevla.cameras.base import GSTREAMER, CameraSettings, Picture, Source, is_device
from edgevla.errors import CameraError


def open_source(settings: CameraSettings) -> Source:
    """The source that `settings.source` names, not yet opened.

    Raises:
        CameraError: it looks like a file that is not there.
    """
    from edgevla.cameras.files import VIDEO_SUFFIXES, ImageFolder, VideoFile
    from edgevla.cameras.opencv import OpenCVCamera

    if settings.source.startswith(GSTREAMER):
        from edgevla.cameras.gstreamer import GStreamerCamera

        return GStreamerCamera(settings)
    path = Path(settings.source or "(no source)")
    if is_device(settings.source):
        return OpenCVCamera(settings)
    if path.is_dir():
        return ImageFolder(settings)
    if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file():
        return VideoFile(settings)
    fault = "is of no kind that can be read" if path.exists() else "does not exist"
    raise CameraError(
        f"camera '{settings.name}': {path} {fault}; give a device (0, /dev/video0), a stream's address, a "
        f"pipeline (gst:...), a folder of images, a video ({' '.join(VIDEO_SUFFIXES)}): --camera {settings.name}=SOURCE",
        camera=settings.name,
    )


__all__ = ["CameraSettings", "Picture", "Source", "open_source"]
