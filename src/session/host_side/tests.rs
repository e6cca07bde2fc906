//! Tests of the host's handles.
