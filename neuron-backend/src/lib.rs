//! Where: AWS Trainium and Inferentia.
