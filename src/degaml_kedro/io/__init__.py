"""The Kedro datasets this project adds, and the trajectory file behind one of them."""
