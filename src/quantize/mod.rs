//! Encoding weights: the plan and the block encoders.
