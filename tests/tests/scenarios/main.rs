//! Scenarios in labs, named by behaviour. One program for all: labs mostly wait, and tests of one program wait side by side.

mod alone;
mod beside;
