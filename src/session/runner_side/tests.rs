//! Tests of the runner's handles.
