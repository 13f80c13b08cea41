"""Components of the page that Gradio does not have."""

from gradio import component_meta

# Gradio writes a stub (.pyi) beside the module of every component class. The app writes nothing outside the temp
# folder, and tools read a stale stub in place of the class.
component_meta.create_or_modify_pyi = lambda *_: None
