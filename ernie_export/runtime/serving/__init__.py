"""The ways to serve a bundle: HTTP (`http`), Ray Serve (`ray_app`) and Triton Inference Server (`triton_backend`)."""
