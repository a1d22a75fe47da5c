"""Bundle + film -> prediction, by onnxruntime; torch is never imported."""
