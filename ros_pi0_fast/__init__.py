"""Pi0-FAST on a robot's own GPU, as a ROS 2 package.

The package path is extended so that this source tree does not hide the generated
``ros_pi0_fast.msg`` (ROS 2 and ``embedded_ros`` both install it elsewhere).
"""

__path__ = __import__('pkgutil').extend_path(__path__, __name__)
__version__ = '0.1.0'
