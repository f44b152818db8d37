//! lcf-native.
