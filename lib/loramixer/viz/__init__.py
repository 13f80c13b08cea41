"""Drawing, shared by the notebooks and the explorer; knows numpy and plotly, no torch and no gradio."""
